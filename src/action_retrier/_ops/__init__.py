"""
What is done to the database, an operation a function, in one module a topic.

Every operation is a generator of statements (see `action_retrier._statements`): written once for
each database, in any colour, in our own transactions and in the caller's.
"""
