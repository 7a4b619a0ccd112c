"""One forget request over very many clients: how long it takes, and what memory the server needs."""
