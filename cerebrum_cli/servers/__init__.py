"""The engine on servers: token ids or messages go out, events come back."""
