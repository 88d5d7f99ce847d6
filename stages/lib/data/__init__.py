"""From a data set on disk, in any layout, to packed images and facts about them."""
