"""
Write the webhook events that the demo delivers, the same ones every time.

    python tools/generate_demo_events.py src/action_retrier/demo/events.jsonl

Names, streets and goods are invented. Addresses on the net come from the ranges that are
reserved for documentation, telephone numbers from those reserved for fiction.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

JSON = dict[str, Any]

ORDERS = 158
SHOP = "kessel-und-blatt"
OPENING = datetime(2025, 11, 24, 6, 0, tzinfo=UTC)
CENT = Decimal("0.01")
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

# name, address on the net, street, postal code, city, region, country, telephone
CUSTOMERS = (
    ("Anneliese Größmann", "a.groessmann", "Wörthstraße 17", "81667", "München", "BY", "DE", "+49 89 99998 417"),
    ("Tomáš Dvořák", "tomas.dvorak", "Křížkovského 8", "130 00", "Praha 3", None, "CZ", None),
    ("Ines Carvalho e Souza", "ines", "Rua da Conceição 112, 3.º Esq.", "1100-154", "Lisboa", None, "PT", None),
    ("佐藤 美咲", "misaki.sato", "神宮前 4-12-10", "150-0001", "東京都渋谷区", "JP-13", "JP", "+81 3 5550 0142"),
    ("Siobhán O’Keeffe", "siobhan.okeeffe", "14 Barrack Street", "T12 XY88", "Cork", "CO", "IE", "+353 20 911 0114"),
    ("Marcus Bell", "mbell", "2208 Alder Ct Apt #5", "97214", "Portland", "OR", "US", "+1 503-555-0138"),
    ("Renée Lefèvre-Dubois", "renee.ld", "3 bis, rue de l'Église", "69005", "Lyon", None, "FR", "+33 1 99 00 12 34"),
    ("Krzysztof Żółkiewski", "kz", "ul. Świętokrzyska 30/63", "00-116", "Warszawa", None, "PL", None),
    ("Εύα Παπαδοπούλου", "eva.p", "Ερμού 44", "105 63", "Αθήνα", None, "GR", None),
    ("Linh Nguyễn", "linh.nguyen", "Hauptstrasse 5", "8001", "Zürich", "ZH", "CH", None),
    ("Olena Шевченко", "olena", "вул. Хрещатик, 22", "01001", "Київ", None, "UA", None),
    ("Åse Bjørnstad", "aase.b", "Sjøgata 3B", "9008", "Tromsø", None, "NO", None),
    (
        "Dr. Samuel P. Whitcombe",
        "s.whitcombe",
        "The Old Dairy, Mill Lane",
        "OX7 5XX",
        "Chipping Norton",
        None,
        "GB",
        "+44 1632 960 471",
    ),
    ("Giulia D'Ambrosio", "g.dambrosio", "Via de' Tornabuoni 9", "50123", "Firenze", "FI", "IT", None),
    ("김서연", "seoyeon.kim", "테헤란로 152, 21층", "06236", "서울특별시 강남구", None, "KR", None),
    ("Zoë van der Meer", "zoe", "Prinsengracht 263-C", "1016 GV", "Amsterdam", "NH", "NL", "+31 20 555 0119"),
    ("José Ángel Ibáñez", "jaibanez", "C/ de l'Om, 23, 2.º 1.ª", "08001", "Barcelona", "B", "ES", None),
    ("יעל לוי", "yael.levi", "רוטשילד 18", "6688121", "תל אביב-יפו", None, "IL", None),
    ("Priya Raghunathan", "priya.r", "41/2 Lavelle Road", "560001", "Bengaluru", "KA", "IN", None),
    ("Beyoğlu Çay Evi Ltd. Şti.", "siparis", "İstiklal Cd. No:201 K:2", "34433", "İstanbul", None, "TR", None),
    ("Maria Null", "null", "1 Test Avenue", "90210", "Beverly Hills", "CA", "US", "+1 310-555-0100"),
    ("Café »Zum Löwen« GmbH & Co. KG", "einkauf", "Marktplatz 1", "72070", "Tübingen", "BW", "DE", None),
)
COUNTRIES = {
    "DE": ("EUR", "de-DE"),
    "CZ": ("CZK", "cs-CZ"),
    "PT": ("EUR", "pt-PT"),
    "JP": ("JPY", "ja-JP"),
    "IE": ("EUR", "en-IE"),
    "US": ("USD", "en-US"),
    "FR": ("EUR", "fr-FR"),
    "PL": ("PLN", "pl-PL"),
    "GR": ("EUR", "el-GR"),
    "CH": ("CHF", "de-CH"),
    "UA": ("UAH", "uk-UA"),
    "NO": ("NOK", "nb-NO"),
    "GB": ("GBP", "en-GB"),
    "IT": ("EUR", "it-IT"),
    "KR": ("KRW", "ko-KR"),
    "NL": ("EUR", "nl-NL"),
    "ES": ("EUR", "es-ES"),
    "IL": ("ILS", "he-IL"),
    "IN": ("INR", "en-IN"),
    "TR": ("TRY", "tr-TR"),
}

# sku, title, variant, price in euro, grams, tax class
GOODS = (
    ("TEA-SEN-050", "Sencha Uji, first flush", "50 g tin", "14.90", 50, "food"),
    ("TEA-SEN-250", "Sencha Uji, first flush", "250 g bag", "59.00", 250, "food"),
    ("TEA-GYO-030", "Gyokuro 玉露 Yame", "30 g tin", "27.50", 30, "food"),
    ("TEA-DAR-100", "Darjeeling SFTGFOP1 “Castleton” 2025", "100 g bag", "18.40", 100, "food"),
    ("TEA-LAP-100", "Lapsang Souchong 正山小種", "100 g bag", "16.20", 100, "food"),
    ("TEA-ROO-200", "Rooibos, naturel", "200 g bag", "8.95", 200, "food"),
    ("TEA-MAT-020", "Matcha “Ceremonial”", "20 g tin", "32.00", 20, "food"),
    ("TEA-ADV-024", "Advent calendar, 24 teas", "2025", "39.90", 1150, "food"),
    ("COF-YIR-250", "Yirgacheffe, washed", "250 g beans", "13.80", 250, "food"),
    ("COF-YIR-1000", "Yirgacheffe, washed", "1 kg beans", "46.00", 1000, "food"),
    ("KET-CI-08", "Tetsubin cast-iron kettle 鉄瓶", "0.8 l, black", "189.00", 2300, "standard"),
    ("KET-GN-09", "Gooseneck kettle", "0.9 l, 220–240 V", "119.00", 1400, "standard"),
    ("POT-KYU-360", "Kyusu, Tokoname clay", "360 ml, left-handed", "74.50", 410, "standard"),
    ("CUP-RAK-2", "Raku cups", "pair, crackled white", "48.00", 380, "standard"),
    ("CUP-ESP-6", "Espresso cups", "set of 6 – “crème”", "36.00", 990, "standard"),
    ("ACC-WHI-80", "Chasen bamboo whisk", "80 prongs", "21.00", 45, "standard"),
    ("ACC-SCA-01", "Brewing scale", "0.1 g, USB-C", "44.90", 340, "standard"),
    ("ACC-FIL-100", "Paper filters no. 4 <unbleached>", "100 pcs", "4.20", 120, "standard"),
    ("GIFT-CARD", "Gift card", None, "50.00", 0, "none"),
)
RATES = {
    "EUR": "1",
    "CZK": "24.31",
    "JPY": "181",
    "USD": "1.152",
    "PLN": "4.24",
    "CHF": "0.931",
    "UAH": "48.7",
    "NOK": "11.79",
    "GBP": "0.879",
    "KRW": "1699",
    "ILS": "3.78",
    "INR": "103.2",
    "TRY": "48.9",
}
WHOLE = {"JPY", "KRW"}
VAT = {
    "DE": ("0.07", "0.19"),
    "FR": ("0.055", "0.20"),
    "IE": ("0.00", "0.23"),
    "GB": ("0.00", "0.20"),
    "CH": ("0.026", "0.081"),
}
NOTES = (
    None,
    None,
    None,
    None,
    None,
    "Bitte beim Nachbarn (Yıldız, 2. OG) abgeben.",
    "Gift wrapping please, no invoice in the parcel 🎁",
    "Sonner à « Atelier », code 41B7\nLaisser chez la gardienne.",
    "不在の場合は宅配ボックスへお願いします。",
    'It\'s the "blue" door; \\\\do not\\\\ use the bell <b>please</b>.',
    "Leave with Seán \N{FAMILY}\u200d or call. Tel. is above.",
    '=HYPERLINK("http://example.com","see note")',
    "Frau Größmann zahlt bar\t– 5 % Skonto vereinbart.",
)
CARRIERS = (("DHL", "JJD0003"), ("UPS", "1Z999AA1"), ("DPD", "0998"), ("Yamato", "4321"), ("PostNL", "3SABCD"))
PLACES = (
    "Köln (DE)",
    "Liège (BE)",
    "Roissy (FR)",
    "East Midlands (GB)",
    "Leipzig/Halle (DE)",
    "Narita (JP)",
    "Łódź (PL)",
)
REFUND_REASONS = ("damaged_in_transit", "wrong_item", "changed_mind", "late_delivery", "quality")
DECLINES = (
    ("card_declined", "insufficient_funds"),
    ("card_declined", "do_not_honor"),
    ("authentication_required", None),
    ("expired_card", None),
)
REVIEWS = (
    (5, "Toll!", "Duftet nach Heu und frischem Gras. Gerne wieder 🍵"),
    (2, "Lid chipped", "The tea is fine, but the lid arrived chipped & support took 6 days."),
    (4, "とても良い", "香りが豊かで、包装も丁寧でした。"),
    (1, "Jamais reçu", "Le colis est marqué « livré » depuis le 26, je n'ai rien reçu…"),
    (5, "👌", "👌👌👌"),
)


class Till:
    """The shop's random source: one seed, so one file."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.number = 104_811

    def token(self, prefix: str, length: int = 24) -> str:
        return prefix + "01KA" + "".join(self.random.choices(CROCKFORD, k=length - 4))

    def digits(self, count: int) -> str:
        return "".join(self.random.choices("0123456789", k=count))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def hex(self, count: int) -> str:
        return f"{self.random.getrandbits(4 * count):0{count}x}"


def stamp(moment: datetime) -> str:
    """RFC 3339 with milliseconds, as webhook senders write it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def money(amount: Decimal, currency: str) -> str:
    return str(amount.quantize(Decimal(1) if currency in WHOLE else CENT))


def line_item(till: Till, currency: str, country: str) -> tuple[JSON, Decimal, Decimal]:
    """One line of an order, its price and the tax contained in it."""
    sku, title, variant, euro, grams, tax_class = till.random.choice(GOODS)
    quantity = till.random.choices((1, 2, 3, 6, 12), (70, 18, 6, 4, 2))[0]
    unit = (Decimal(euro) * Decimal(RATES[currency])).quantize(Decimal(1) if currency in WHOLE else CENT)
    low, high = VAT.get(country, ("0.10", "0.21"))
    rate = {"food": low, "standard": high, "none": "0.00"}[tax_class]
    total = unit * quantity
    tax = total * Decimal(rate) / (1 + Decimal(rate))
    item: JSON = {
        "id": int(till.digits(12)) + 10**12,
        "sku": sku,
        "title": title,
        "variant": variant,
        "quantity": quantity,
        "unit_price": money(unit, currency),
        "total": money(total, currency),
        "tax": {"rate": rate, "amount": money(tax, currency), "included": True},
        "grams": grams,
        "requires_shipping": grams > 0,
        "properties": [],
    }
    if sku == "GIFT-CARD":
        item["properties"] = [{"name": "message", "value": "Alles Gute zum Geburtstag, Ömer! 🎂"}]
    elif till.chance(0.08):
        item["properties"] = [{"name": "engraving", "value": till.random.choice(("Für Oma", "J ♥ M", "2025", "茶"))}]
    return item, total, tax


def order(till: Till, moment: datetime) -> JSON:
    name, mailbox, street, code, city, region, country, phone = till.random.choice(CUSTOMERS)
    currency, locale = COUNTRIES[country]
    count = till.random.choices((1, 2, 3, 5, 9), (48, 26, 15, 8, 3))[0]
    lines, totals, taxes = zip(*(line_item(till, currency, country) for _ in range(count)), strict=True)
    goods = sum(totals, Decimal(0))
    discounts: list[JSON] = []
    discount = Decimal(0)
    if till.chance(0.22):
        discount = goods / 10
        discounts = [{"code": "ADVENT10", "type": "percentage", "value": "10.0", "amount": money(discount, currency)}]
    shipping = Decimal(0) if goods > 60 * Decimal(RATES[currency]) else Decimal("4.90") * Decimal(RATES[currency])
    address: JSON = {
        "name": name,
        "line1": street,
        "line2": None,
        "postal_code": code,
        "city": city,
        "region": region,
        "country": country,
        "phone": phone,
    }
    till.number += till.random.randint(1, 3)
    return {
        "id": till.token("ord_"),
        "number": f"#{till.number}",
        "status": "open",
        "financial_status": "pending",
        "fulfillment_status": None,
        "currency": currency,
        "created_at": stamp(moment),
        "customer": {
            "id": till.token("cus_", 20),
            "name": name,
            "email": f"{mailbox}@example.com",
            "phone": phone,
            "locale": locale,
            "accepts_marketing": till.chance(0.3),
            "orders_count": till.random.choice((1, 1, 1, 2, 3, 7, 41)),
            "tags": till.random.sample(
                ("vip", "wholesale", "newsletter", "b2b", "größe-L"), till.random.choice((0, 0, 1, 2))
            ),
        },
        "line_items": list(lines),
        "discounts": discounts,
        "shipping": {
            "method": till.random.choice(("standard", "express", "pickup_point")),
            "price": money(shipping, currency),
        },
        "totals": {
            "goods": money(goods, currency),
            "discount": money(discount, currency),
            "shipping": money(shipping, currency),
            "tax": money(sum(taxes, Decimal(0)), currency),
            "grand_total": money(goods - discount + shipping, currency),
        },
        "shipping_address": address,
        "billing_address": address | {"line2": "z. Hd. Buchhaltung"} if till.chance(0.15) else None,
        "note": till.random.choice(NOTES),
        "client": {
            "ip": f"203.0.113.{till.random.randint(1, 254)}",
            "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
        }
        if till.chance(0.5)
        else {"ip": f"2001:db8::{till.hex(4)}:{till.hex(4)}", "user_agent": None},
        "metadata": {"cart_token": till.hex(32), "ab": {"checkout": till.random.choice("AB"), "exp": [1, 0.5, None]}}
        if till.chance(0.4)
        else {},
    }


def payment(till: Till, of: JSON) -> JSON:
    method: JSON = till.random.choice(
        (
            {"type": "card", "brand": "visa", "last4": "4242", "three_d_secure": "authenticated"},
            {"type": "card", "brand": "mastercard", "last4": "4444", "three_d_secure": None},
            {"type": "sepa_debit", "last4": "3000", "mandate": "MD-" + till.digits(8)},
            {"type": "paypal", "payer_id": till.token("", 13)},
            {"type": "invoice", "net_days": 14},
        )
    )
    total = Decimal(of["totals"]["grand_total"])
    return {
        "id": till.token("pay_"),
        "order_id": of["id"],
        "status": "captured",
        "amount": of["totals"]["grand_total"],
        "currency": of["currency"],
        "fee": money(total * Decimal("0.014") + Decimal("0.25") * Decimal(RATES[of["currency"]]), of["currency"]),
        "method": method,
        "risk": {
            "score": till.random.randint(0, 99),
            "rules": till.random.choice(([], ["velocity"], ["address_mismatch", "new_device"])),
        },
    }


def declined(till: Till, of: JSON) -> JSON:
    code, detail = till.random.choice(DECLINES)
    return payment(till, of) | {
        "status": "failed",
        "fee": "0.00",
        "failure": {"code": code, "decline_code": detail, "message": "Your card was declined."},
    }


def shipment(till: Till, of: JSON, moment: datetime, status: str, stops: int) -> JSON:
    carrier, prefix = till.random.choice(CARRIERS)
    return {
        "id": till.token("shp_"),
        "order_id": of["id"],
        "status": status,
        "carrier": carrier,
        "tracking_number": prefix + till.digits(12),
        "tracking_url": "https://track.example.com/?n=" + till.digits(12) + "&lang=" + of["customer"]["locale"],
        "weight_grams": sum(item["grams"] * item["quantity"] for item in of["line_items"]) + 180,
        "items": [{"line_item_id": item["id"], "quantity": item["quantity"]} for item in of["line_items"]],
        "destination": {
            "postal_code": of["shipping_address"]["postal_code"],
            "city": of["shipping_address"]["city"],
            "country": of["shipping_address"]["country"],
        },
        "checkpoints": [
            {
                "at": stamp(moment - timedelta(hours=7 * (stops - stop))),
                "place": till.random.choice(PLACES),
                "code": till.random.choice(("PU", "AF", "DF", "OD")),
            }
            for stop in range(stops)
        ],
    }


def refund(till: Till, of: JSON) -> JSON:
    item = till.random.choice(of["line_items"])
    return {
        "id": till.token("ref_"),
        "order_id": of["id"],
        "status": "succeeded",
        "amount": item["total"],
        "currency": of["currency"],
        "reason": till.random.choice(REFUND_REASONS),
        "items": [
            {"line_item_id": item["id"], "sku": item["sku"], "quantity": item["quantity"], "restock": till.chance(0.5)}
        ],
        "comment": till.random.choice(
            (None, "Fotos liegen vor (3 Stück).", "Kunde ruft an – bitte „schnell“ erstatten!", "客様都合")
        ),
    }


def dispute(till: Till, of: JSON, moment: datetime) -> JSON:
    return {
        "id": till.token("dsp_"),
        "order_id": of["id"],
        "status": "needs_response",
        "amount": of["totals"]["grand_total"],
        "currency": of["currency"],
        "network_reason_code": till.random.choice(("10.4", "13.1", "4853")),
        "evidence_due_by": stamp(moment + timedelta(days=9)),
        "evidence": {"receipt": None, "shipping_documentation": None, "uncategorized_text": ""},
    }


def review(till: Till, of: JSON) -> JSON:
    stars, title, body = till.random.choice(REVIEWS)
    return {
        "id": till.token("rev_"),
        "order_id": of["id"],
        "sku": of["line_items"][0]["sku"],
        "rating": stars,
        "title": title,
        "body": body,
        "verified": True,
    }


def life_of_an_order(till: Till, placed_at: datetime) -> Iterator[tuple[datetime, str, JSON, str]]:
    """Everything that the shop tells the world about one order: when, what, its data, the order's id."""
    made = order(till, placed_at)
    name = made["id"]
    moment = placed_at
    yield moment, "order.created", {"order": made}, name
    if till.chance(0.24):
        return
    moment += timedelta(seconds=till.random.randint(4, 900))
    if till.chance(0.13):
        yield moment, "payment.failed", {"payment": declined(till, made)}, name
        moment += timedelta(minutes=till.random.randint(2, 600))
        if till.chance(0.4):
            canceled = {"id": name, "status": "canceled", "cancel_reason": "payment", "canceled_at": stamp(moment)}
            yield moment, "order.canceled", {"order": canceled, "previous": {"status": "open"}}, name
            return
    yield (
        moment,
        "order.paid",
        {"payment": payment(till, made), "order": {"id": name, "number": made["number"], "financial_status": "paid"}},
        name,
    )
    if till.chance(0.3):
        return
    moment += timedelta(hours=till.random.randint(2, 30))
    yield moment, "shipment.created", {"shipment": shipment(till, made, moment, "label_created", 0)}, name
    if till.chance(0.45):
        moment += timedelta(hours=till.random.randint(14, 70))
        yield (
            moment,
            "shipment.delivered",
            {"shipment": shipment(till, made, moment, "delivered", till.random.randint(2, 14))},
            name,
        )
    if till.chance(0.22):
        moment += timedelta(hours=till.random.randint(20, 200))
        yield moment, "refund.succeeded", {"refund": refund(till, made)}, name
    elif till.chance(0.06):
        moment += timedelta(hours=till.random.randint(200, 400))
        yield moment, "dispute.opened", {"dispute": dispute(till, made, moment)}, name
    elif till.chance(0.15):
        moment += timedelta(hours=till.random.randint(30, 300))
        yield moment, "review.created", {"review": review(till, made)}, name


def events(seed: int) -> list[JSON]:
    """All events of all orders, in the order in which they happened."""
    till = Till(seed)
    happened = []
    placed_at = OPENING
    for _ in range(ORDERS):
        placed_at += timedelta(milliseconds=till.random.randint(9_000, 1_500_000))
        happened += list(life_of_an_order(till, placed_at))
    happened.sort(key=lambda entry: entry[0])
    return [
        {
            "id": till.token("evt_", 26),
            "type": kind,
            "api_version": "2025-10-01",
            "created_at": stamp(moment),
            "livemode": False,
            "shop": SHOP,
            "order_id": name,
            "data": data,
        }
        for moment, kind, data, name in happened
    ]


def main() -> None:
    lines = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in events(seed=1)]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
