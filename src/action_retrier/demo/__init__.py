"""
A shop's webhooks, delivered to a receiver that misbehaves the way the world does.

Every part is a process of its own: the shop (`shop.py`) starts runs inside the transactions that
insert its orders, the workers (`app.py`) deliver, the receiver (`receiver.py`) fails them. `run.py`
watches over the three, kills one worker, and `verify.py` holds the receiver's ledger against the
database.
"""
