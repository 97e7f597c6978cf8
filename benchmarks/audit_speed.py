"""How many rows a second does `audit verify` check, and how many does a plain SELECT of the same rows read?

`python benchmarks/audit_speed.py [--rows 100000] [--rounds 3]` on a PostgreSQL of its own. Ratios first, for machines differ.
Exit code 1 if an honest row was called tampered with, or the aim of rows a second was missed.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from activities import audit
from activities.postgres import Database
from durable_agents.domain import audit as rules
from durable_agents.domain.identifiers import TenantId
from starter.embedded.servers import EmbeddedServers
from tests.support.audit_logs import almighty, honest, write_log
from tests.support.world import fresh_database, prepare_template

AIM = 50_000
ACME = TenantId("acme")


async def plain_select(database: Database) -> float:
    """Seconds to read every row in the same batches, doing nothing with them."""
    begun = time.perf_counter()
    async with database.transaction(ACME, snapshot=True) as connection:
        async for _ in audit.entries(connection, ACME):
            pass
    return time.perf_counter() - begun


async def verification(database: Database) -> tuple[float, int]:
    """Seconds to check every row, and how many problems were found."""
    begun = time.perf_counter()
    async with database.transaction(ACME, snapshot=True) as connection:
        chain = await audit.examine(connection, ACME)
    return time.perf_counter() - begun, chain.count


def exported(rows: int) -> tuple[float, int]:
    """The same offline: seconds to check the rows of an export."""
    entries = list(honest(ACME, rows))
    lines = [rules.export_beginning([ACME], 0), *(rules.export_entry(ACME, entry) for entry in entries)]
    lines += [rules.export_head(ACME, rules.Head(rows, entries[-1].hash)), rules.export_end(rows + 3)]
    begun = time.perf_counter()
    (chain,) = rules.follow_export(lines)
    return time.perf_counter() - begun, chain.count


async def main(given: argparse.Namespace) -> int:
    """Print ratios first; 1 if the aim was missed or there was a false alarm."""
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedServers(Path(folder), headless=True) as endpoints:
            assert endpoints.urls is not None
            await prepare_template(endpoints.urls)
            async with fresh_database(endpoints.urls) as made:
                async with almighty(made) as owner:
                    await write_log(owner, ACME, honest(ACME, given.rows))
                    await owner.execute("analyze audit_entry")
                database = await Database.open(made.auditor)
                try:
                    floors = [await plain_select(database) for _ in range(given.rounds)]
                    checks = [await verification(database) for _ in range(given.rounds)]
                finally:
                    await database.close()
    seconds, floor, alarms = min(one for one, _ in checks), min(floors), sum(count for _, count in checks)
    offline, more = exported(given.rows)
    speed = given.rows / seconds
    print(f"verify takes {seconds / floor:.2f} times as long as a plain SELECT of the same {given.rows:,} rows")
    print(f"verify {speed:,.0f} rows/s (aim: {AIM:,}), SELECT {given.rows / floor:,.0f} rows/s,"
          f" an export {given.rows / offline:,.0f} rows/s; best of {given.rounds}")  # fmt: skip
    print(f"false alarms: {alarms + more}")
    good = speed >= AIM and not alarms and not more
    print("the aim is met" if good else "THE AIM WAS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    sys.exit(asyncio.run(main(parser.parse_args())))
