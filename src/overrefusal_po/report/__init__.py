"""Pages made from results: report, pictures, model card, and the contents of summary files."""
