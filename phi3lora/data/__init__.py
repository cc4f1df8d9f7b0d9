"""Chat data: sources (Hub, file, bundled) to formats (rows to messages) to rendering (tokens and loss mask)."""
