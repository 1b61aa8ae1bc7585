"""What is not ours, configured at the edge."""
