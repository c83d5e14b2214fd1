"""The console: pages for people, made on the server from the services that the API is made from."""
