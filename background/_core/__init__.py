"""One call, from the moment it is made until nobody holds it."""
