"""Django, in one file: an order and the run that charges it commit together, and the callback uses the model."""

import json

import django
from django.conf import settings
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client
from django.urls import path

from action_retrier import App, MutationCtx, RunResult, Success, SyncActionRetrier, to_json

app = App("django:default")  # looked up on first use, so a module of its own may say this
retrier = SyncActionRetrier(app)

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}},
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["testserver"],
)
django.setup()


class Order(models.Model):
    state = models.TextField(default="new")

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"order {self.pk} is {self.state}"


@app.action
def charge(order_id: int) -> str:
    return f"receipt of order {order_id}"  # a call to the payment service, in real life


@app.mutation
def settle(ctx: MutationCtx, result: RunResult, context: int) -> None:  # noqa: ARG001 - the models find their connection
    Order.objects.filter(pk=context).update(state="paid" if isinstance(result, Success) else "refused")


@transaction.atomic  # or ATOMIC_REQUESTS = True for all views
def place_order(_: HttpRequest) -> JsonResponse:
    order = Order.objects.create()
    run_id = retrier.run(connection, charge, {"order_id": order.pk}, on_complete=settle, context=order.pk)
    return JsonResponse({"order": order.pk, "run": run_id})


def status(_: HttpRequest, run_id: str) -> HttpResponse:
    return HttpResponse(to_json(retrier.status(connection, run_id)), content_type="application/json")


urlpatterns = [path("orders", place_order), path("runs/<run_id>", status)]


def main() -> None:
    with connection.schema_editor() as editor:  # a migration, in real life
        editor.create_model(Order)
    client = Client()
    with app, app.worker():  # or a process of its own: action-retrier worker shop.jobs:app
        placed = json.loads(client.post("/orders").content)
        retrier.wait(app, placed["run"], timeout_ms=10_000)
        answer = json.loads(client.get(f"/runs/{placed['run']}").content)
        order = Order.objects.get(pk=placed["order"])
    assert answer == {"type": "completed", "result": {"type": "success", "returnValue": "receipt of order 1"}}
    assert order.state == "paid"
    print(f"{order}: {answer['result']['returnValue']}")


if __name__ == "__main__":
    main()
