"""Speculative decoding: proposers guess the next tokens, a step checks the guesses; the text is that without them."""
