"""Token sequences in, events out; conversations, prompt formats and terminals are not known here."""
