"""Parts of the datastore beside its methods: how it is opened, its errors for clients, and the facts that it shows."""
