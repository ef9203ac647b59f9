"""The demo profile: songs made by rule, and the small models that learn to sing them."""
