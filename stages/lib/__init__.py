"""Code that stages share, in rooms by role. A stage depends on the rooms that it imports."""
