"""What the documentation site takes from the code (`make docs`), and what runs the code that the pages show."""
