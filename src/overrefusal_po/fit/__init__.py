"""The stage that fits a remedy for over-refusal on a model and chooses its strength on dev."""
