"""Situations that users of this and of kindred software have met, one file a kind; each says what is right there."""
