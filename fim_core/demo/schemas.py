"""Small made-up schemas for the synthetic export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DemoTable:
    """A table, with its columns by their use in queries.

    Attributes:
        alias: its alias in queries, unique in its schema.
        key: the primary key.
        time: the one time stamp.
        dimensions: text columns and the values they take.
        measures: numeric columns.
        references: foreign key to the table it points at; the parent's key has the same name.
        document: a VARIANT column with a list of `items`, each with these text fields.
    """

    name: str
    alias: str
    key: str
    time: str
    dimensions: Mapping[str, tuple[str, ...]]
    measures: tuple[str, ...] = ()
    references: Mapping[str, str] | None = None
    document: tuple[str, tuple[str, ...]] | None = None

    def ddl(self, schema: str) -> str:
        """The CREATE TABLE statement that an editor shows a model as context."""
        columns = [f"{self.key} NUMBER"]
        columns += [f"{column} NUMBER" for column in self.references or {}]
        columns += [f"{column} VARCHAR" for column in self.dimensions]
        columns += [f"{column} NUMBER(12, 2)" for column in self.measures]
        columns += [f"{self.document[0]} VARIANT"] if self.document else []
        columns += [f"{self.time} TIMESTAMP_NTZ"]
        return f"CREATE TABLE {schema}.{self.name} ({', '.join(columns)});"


@dataclass(frozen=True)
class Subject:
    """Related tables. `facts` have measures and a parent; the other tables are the parents."""

    name: str
    tables: tuple[DemoTable, ...]

    @property
    def facts(self) -> tuple[DemoTable, ...]:
        """Tables with measures that point at another table."""
        return tuple(table for table in self.tables if table.references and table.measures)

    def table(self, name: str) -> DemoTable:
        """The table of that name."""
        return next(table for table in self.tables if table.name == name)


# Schemas are named after a team and a stage, so that worksheets rarely share one: a model has to copy its name from the
# context.
TEAMS = (
    "atlas", "basalt", "comet", "delta", "ember", "fjord", "garnet", "harbor", "indigo", "jasper", "kelvin", "lumen",
    "meadow", "nectar", "onyx", "pepper",
)  # fmt: skip
STAGES = (
    "raw", "lab", "core", "mart", "dev", "test", "prod", "stage", "vault", "sandbox", "draft", "archive", "daily",
    "east", "west", "audit",
)  # fmt: skip

# One column group a line reads best here.
# fmt: off
SUBJECTS = (
    Subject(
        "retail",
        (
            DemoTable("customers", "c", "customer_id", "joined_at", {
                "region": ("north", "south", "east", "west"), "segment": ("retail", "wholesale", "online")}),
            DemoTable("products", "p", "product_id", "listed_at", {
                "category": ("garden", "kitchen", "toys", "sport"), "brand": ("acorn", "birch", "cedar")}, ("price",)),
            DemoTable("orders", "o", "order_id", "ordered_at", {
                "status": ("open", "paid", "shipped", "returned"), "channel": ("shop", "web", "phone")},
                ("amount", "discount"), {"customer_id": "customers"}, ("basket", ("sku", "colour"))),
            DemoTable("order_lines", "l", "line_id", "packed_at", {"line_state": ("picked", "packed", "missing")},
                  ("quantity", "line_total"), {"order_id": "orders", "product_id": "products"}),
        ),
    ),
    Subject(
        "plant",
        (
            DemoTable("devices", "d", "device_id", "installed_at", {
                "model": ("a100", "b200", "c300"), "site": ("lyon", "porto", "turin", "ghent")}),
            DemoTable("readings", "r", "reading_id", "read_at", {
                "metric": ("heat", "humidity", "pressure"), "quality": ("good", "bad", "stale")},
                ("reading", "battery"), {"device_id": "devices"}, ("payload", ("probe", "unit"))),
            DemoTable("alarms", "a", "alarm_id", "raised_at", {
                "severity": ("low", "high", "critical"), "cause": ("leak", "drift", "outage")},
                ("duration_s",), {"device_id": "devices"}),
        ),
    ),
    Subject(
        "bank",
        (
            DemoTable("accounts", "ac", "account_id", "opened_at", {
                "currency": ("eur", "usd", "chf"), "branch": ("harbour", "centre", "airport")}, ("credit_limit",)),
            DemoTable("payments", "pm", "payment_id", "booked_at", {
                "kind": ("card", "transfer", "debit"), "country": ("de", "fr", "it", "es")},
                ("value_eur", "fee"), {"account_id": "accounts"}, ("details", ("reference", "purpose"))),
            DemoTable("loans", "ln", "loan_id", "granted_at", {
                "rating": ("aa", "a", "b"), "loan_state": ("live", "closed")},
                ("principal", "interest"), {"account_id": "accounts"}),
        ),
    ),
    Subject(
        "people",
        (
            DemoTable("departments", "dp", "department_id", "founded_at", {
                "division": ("sales", "support", "research"), "city": ("oslo", "bern", "graz")}),
            DemoTable("employees", "e", "employee_id", "hired_at", {
                "grade": ("junior", "senior", "lead"), "contract": ("full", "part")},
                ("salary", "bonus"), {"department_id": "departments"}),
            DemoTable("absences", "ab", "absence_id", "started_at", {"reason": ("ill", "holiday", "parental")},
                  ("days",), {"employee_id": "employees"}),
        ),
    ),
    Subject(
        "web",
        (
            DemoTable("visitors", "v", "visitor_id", "first_seen_at", {
                "country": ("nl", "be", "dk", "pl"), "source": ("search", "social", "mail")}),
            DemoTable("sessions", "s", "session_id", "session_start", {
                "device": ("phone", "tablet", "desktop"), "browser": ("firefox", "chrome", "safari")},
                ("page_count", "seconds"), {"visitor_id": "visitors"}),
            DemoTable("events", "ev", "event_id", "event_at", {
                "event_name": ("view", "click", "scroll"), "page": ("home", "search", "cart")},
                ("load_ms",), {"session_id": "sessions"}, ("properties", ("label", "target"))),
        ),
    ),
)
# fmt: on
