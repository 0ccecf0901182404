"""What a UPS says, and what follows from it."""

from __future__ import annotations

import itertools

import pytest

from everram.actors.power_monitor.ups import ACT_AT_ONCE, BLIND_S, UpsWatch, Verdict
from everram.runtime.environment import UpsReading as R
from everram.runtime.errors import InvalidArgument
from everram.runtime.production.nut import NutUps, reading_of, seconds_of

SILENT = (R.UNKNOWN, R.STALE, R.LOST)


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        ('VAR ups ups.status "OL"', R.ON_LINE),
        ('VAR ups ups.status "OL CHRG"', R.ON_LINE),
        ('VAR ups ups.status "OL LB RB"', R.ON_LINE),
        ('VAR ups ups.status "OB DISCHRG"', R.ON_BATTERY),
        ('VAR ups ups.status "OB LB"', R.LOW_BATTERY),
        ('VAR ups ups.status "FSD OB LB"', R.FORCED_SHUTDOWN),
        ('VAR ups ups.status "WAIT"', R.UNKNOWN),
        ('VAR ups ups.status ""', R.UNKNOWN),
        ("ERR DATA-STALE", R.STALE),
        ("ERR DRIVER-NOT-CONNECTED", R.LOST),
        ("ERR UNKNOWN-UPS", R.LOST),
        ("HTTP/1.1 400 Bad Request", R.LOST),
        ("", R.LOST),
    ],
)
def test_the_answers_of_upsd(line: str, reading: R) -> None:
    assert reading_of(line) is reading


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ('VAR ups battery.runtime "1234"', [1234.0]),
        ('VAR ups battery.runtime "0.5"', [0.5]),
        ('VAR ups battery.runtime "0"', [0.0]),
        ('VAR ups battery.runtime "-1"', []),
        ('VAR ups battery.runtime "nan"', []),
        ('VAR ups battery.runtime "99999999999"', []),
        ('VAR ups battery.runtime ""', []),
        ('VAR ups battery.runtime.low "120"', []),
        ("ERR VAR-NOT-SUPPORTED", []),
        ("ERR DATA-STALE", []),
    ],
)
def test_how_long_it_lasts_is_believed_if_it_can_be(line: str, seconds: list[float]) -> None:
    assert seconds_of(line, "battery.runtime") == seconds


def test_a_short_loss_is_ridden_through_and_a_low_battery_is_not() -> None:
    watch = UpsWatch()
    seen = [watch.saw(reading, at) for at, reading in enumerate((R.ON_LINE, R.ON_BATTERY, R.ON_LINE, R.ON_LINE))]
    assert seen == [Verdict.KEEP, Verdict.WAIT, Verdict.BACK, Verdict.KEEP]
    assert [watch.saw(reading, 9) for reading in (R.ON_BATTERY, R.LOW_BATTERY)] == [Verdict.WAIT, Verdict.ACT]
    assert UpsWatch().saw(R.FORCED_SHUTDOWN, 0) is Verdict.ACT
    assert UpsWatch(ACT_AT_ONCE).saw(R.ON_BATTERY, 0) is Verdict.ACT


@pytest.mark.parametrize("silent", SILENT)
def test_silence_on_mains_is_said_and_changes_nothing(silent: R) -> None:
    watch = UpsWatch()
    for at, reading in enumerate((silent, R.ON_LINE, silent, silent)):
        assert watch.saw(reading, at * 1000.0) is Verdict.KEEP
    assert silent.value in watch.warning
    watch.saw(R.ON_LINE, 5000.0)
    assert watch.warning == ""


@pytest.mark.parametrize(("first", "later"), list(itertools.product(SILENT, SILENT)))
def test_silence_on_battery_is_borne_for_a_while(first: R, later: R) -> None:
    watch = UpsWatch()
    watch.saw(R.ON_BATTERY, 0.0)
    assert watch.saw(first, 1.0) is Verdict.WAIT
    assert watch.saw(later, 1.0 + BLIND_S - 0.1) is Verdict.WAIT
    assert watch.saw(later, 1.0 + BLIND_S) is Verdict.ACT
    assert watch.saw(R.ON_LINE, 9.0) is Verdict.BACK


@pytest.mark.parametrize("text", ["ups", "@host", "ups@", "ups@host:port", "ups@host:99999", "a b@host", "u@h:1:2"])
def test_what_names_no_ups_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="NAME@HOST"):
        NutUps.parse(text)
