# test_transcripts.py: each transcript of SPEC.md, replayed (MIT).
"""Against the platform all of them, against the bootstrap those that it can play."""

from typing import List, Tuple

import pytest

import kit
import replay
import spec
from platform_run import PlatformUnderTest

SPEC = spec.load()


def rule_for(transcript: spec.Transcript) -> str:
    """Return the rule that the outcomes table names for the transcript's outcome."""
    table = SPEC.table(transcript.protocol, "outcome", "status", "rule")
    return {row["outcome"]: row["rule"] for row in table.records()}[transcript.outcome]


Case = Tuple[spec.Transcript, str]
PLAYED = [one for one in SPEC.transcripts if replay.can_play(one)]


def cases(protocol: str, replayed: Tuple[str, ...]) -> List[Case]:
    """Return the transcripts of the protocol, each with its rule."""
    return [(one, rule_for(one)) for one in PLAYED
            if one.protocol == protocol and one.replay in replayed]


def names(found: List[Case]) -> List[str]:
    """Return the ids of the tests: outcome and line of SPEC.md."""
    return [f"{one.outcome}-line-{one.line}" for one, _ in found]


ALL = ("both", "platform")
PLATFORM = {protocol: cases(protocol, ALL) for protocol in kit.PROTOCOLS}
BOOTSTRAP = {protocol: cases(protocol, ("both",)) for protocol in kit.PROTOCOLS}


@pytest.mark.parametrize("transcript,rule", PLATFORM["fc"], ids=names(PLATFORM["fc"]))
def test_fc_platform(platform: PlatformUnderTest, transcript: spec.Transcript,
                     rule: str) -> None:
    """The platform says what the transcript shows."""
    replay.against_platform(platform, transcript)


@pytest.mark.parametrize("transcript,rule", PLATFORM["scf"], ids=names(PLATFORM["scf"]))
def test_scf_platform(platform: PlatformUnderTest, transcript: spec.Transcript,
                      rule: str) -> None:
    """The platform says what the transcript shows."""
    replay.against_platform(platform, transcript)


@pytest.mark.parametrize("transcript,rule", PLATFORM["fg"], ids=names(PLATFORM["fg"]))
def test_fg_platform(platform: PlatformUnderTest, transcript: spec.Transcript,
                     rule: str) -> None:
    """The platform says what the transcript shows."""
    replay.against_platform(platform, transcript)


@pytest.mark.parametrize("transcript,rule", BOOTSTRAP["fc"], ids=names(BOOTSTRAP["fc"]))
def test_fc_bootstrap(bootstrap: kit.Bootstrap, transcript: spec.Transcript,
                      rule: str) -> None:
    """The bootstrap says what the transcript shows."""
    replay.against_bootstrap(bootstrap, transcript)


@pytest.mark.parametrize("transcript,rule", BOOTSTRAP["scf"],
                         ids=names(BOOTSTRAP["scf"]))
def test_scf_bootstrap(bootstrap: kit.Bootstrap, transcript: spec.Transcript,
                       rule: str) -> None:
    """The bootstrap says what the transcript shows."""
    replay.against_bootstrap(bootstrap, transcript)


@pytest.mark.parametrize("transcript,rule", BOOTSTRAP["fg"], ids=names(BOOTSTRAP["fg"]))
def test_fg_bootstrap(bootstrap: kit.Bootstrap, transcript: spec.Transcript,
                      rule: str) -> None:
    """The bootstrap says what the transcript shows."""
    replay.against_bootstrap(bootstrap, transcript)
