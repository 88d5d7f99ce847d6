"""From a data set on disk to packed images and facts about them."""
