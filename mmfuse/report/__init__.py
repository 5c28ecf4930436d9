"""Tables, charts, pictures and pages."""
