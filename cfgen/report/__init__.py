"""The report page: one HTML file that shows films, how they were made and how they go on."""
