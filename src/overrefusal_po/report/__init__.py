"""Pages made from results: report, pictures, model card, and what summary files hold."""
