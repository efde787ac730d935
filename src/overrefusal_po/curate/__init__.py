"""The stage that turns prompts into preference pairs or SFT answers."""
