"""The routes of the server: what each is asked, and what it answers."""
