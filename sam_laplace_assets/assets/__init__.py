"""The asset graph, one file a concept."""
