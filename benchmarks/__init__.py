"""How fast it is, beside a floor of raw SQL that does the same durable state changes."""
