"""Chat data: sources → formats (rows → messages) → rendering (messages → tokens, loss mask)."""
