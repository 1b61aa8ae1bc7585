"""What the console commands do, one a file."""
