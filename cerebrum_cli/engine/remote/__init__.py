"""Generation on servers, with the vocabulary of a local file: token ids go out, token ids come back."""
