"""What is counted, scraped and logged."""
