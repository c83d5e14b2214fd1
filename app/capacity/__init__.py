"""Hosts follow the queue: rents, drains and destroys GPU hosts under a budget."""
