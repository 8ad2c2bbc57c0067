"""Keys: building and parsing are exact inverses; nothing else parses."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupfw import naming
from backupfw.engine.format import keys

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
origins = st.builds(
    keys.Origin,
    names,
    names,
    names,
    # Of the longest characters 12 would make it too long an origin.
    names.map(lambda name: name[:7]),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**31 - 1),
    st.text("0123456789abcdef", min_size=16, max_size=16),
)


@given(origins, st.integers(0, keys.MAX_SEGMENTS - 1), st.integers(0, keys.MAX_PACKS - 1))
@example(keys.Origin("", ".", "..", "a/b", 0, 0, "0" * 16), 0, 0)
@example(keys.Origin("i", "p", "v", "b" * 98, 2**31 - 1, 0, "0" * 16), 0, 0)
def test_every_key_parses_to_what_it_was_built_from(origin: keys.Origin, segment: int, number: int) -> None:
    text = str(origin)
    assert keys.parse_origin(text) == origin
    assert keys.parse(keys.manifest_key(text)) == keys.ParsedKey(text, "manifest")
    assert keys.parse(keys.map_key(text, segment)) == keys.ParsedKey(text, "map", segment)
    assert keys.parse(keys.pack_key(text, segment, number)) == keys.ParsedKey(text, "pack", segment, number)
    assert naming.key_problem(keys.pack_key(text, segment, number)) is None
    for key in (keys.manifest_key(text), keys.map_key(text, segment), keys.pack_key(text, segment, number)):
        assert keys.origin_of(key) == text
        assert keys.is_of_backups(key)
        assert not keys.is_data_key(key)


def test_the_key_of_a_data_key_is_below_its_volume_and_of_backups() -> None:
    key = keys.data_key_key("i/p/v/", "0123456789abcdef" * 2)
    assert key == "i/p/v/keys/0123456789abcdef0123456789abcdef"
    assert keys.is_data_key(key)
    assert keys.is_of_backups(key)
    for other in (key[:-1], f"{key}0", f"x/{key}", key.replace("keys", "key"), key.replace("f", "F")):
        assert not keys.is_data_key(other)
        assert not keys.is_of_backups(other)


GOOD = "i/p/v/b/0.1-0123456789abcdef"


@pytest.mark.parametrize(
    "key",
    [
        "",
        GOOD,
        f"{GOOD}/",
        f"{GOOD}/manifest/",
        f"{GOOD}/manifest2",
        f"/{GOOD}/manifest",
        f"x/{GOOD}/manifest",
        f"{GOOD}/0000000/map",
        f"{GOOD}/0000000A/map",
        f"{GOOD}/00000000/p00000",
        f"{GOOD}/00000000/p000g",
        f"{GOOD}/00000000/map\n",
        "i/p/v/b/00.1-0123456789abcdef/manifest",
        "i/p/v/b/0.01-0123456789abcdef/manifest",
        "i/p/v/b/0.1-0123456789ABCDEF/manifest",
        "i/p/v/b/0.1-0123456789abcde/manifest",
        "i/p/v/b/-1.1-0123456789abcdef/manifest",
        "i/p/v/%62/0.1-0123456789abcdef/manifest",
        "i/p//b/0.1-0123456789abcdef/manifest",
        "i/p/../b/0.1-0123456789abcdef/manifest",
        "i/p/v/é/0.1-0123456789abcdef/manifest",
        "i/p/v/%ff/0.1-0123456789abcdef/manifest",
        f"{'i' * 1100}/p/v/b/0.1-0123456789abcdef/manifest",
        f"i/p/v/{'b' * 108}/0.1-0123456789abcdef/manifest",
        "i/p/v/b/2147483648.1-0123456789abcdef/manifest",
        "i/p/v/b/0.2147483648-0123456789abcdef/manifest",
    ],
)
def test_other_keys_do_not_parse(key: str) -> None:
    assert keys.parse(key) is None


def test_an_origin_may_be_as_long_as_the_longest_key_lets_it() -> None:
    project = "p" * (keys.MAX_ORIGIN_LENGTH - len(GOOD) + 1)
    longest = GOOD.replace("p", project)
    assert len(longest) == keys.MAX_ORIGIN_LENGTH
    assert keys.parse_origin(longest) == keys.Origin("i", project, "v", "b", 0, 1, "0123456789abcdef")
    assert naming.key_problem(keys.pack_key(longest, 0, 0)) is None
    assert keys.parse_origin(GOOD.replace("p", f"{project}p")) is None


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused_without_an_error(text: str) -> None:
    for key in (text, f"{GOOD}/{text}", f"{text}/manifest"):
        parsed = keys.parse(key)
        if parsed is not None:
            assert key.startswith(parsed.origin)


def test_prefixes_are_prefixes_of_what_they_should_be_only() -> None:
    origin = keys.Origin("i", "p", "v", "b", 1, 2, "0" * 16)
    key = keys.manifest_key(str(origin))
    assert key.startswith(keys.installation_prefix("i"))
    assert key.startswith(keys.volume_prefix("i", "p", "v"))
    assert key.startswith(keys.backup_prefix("i", "p", "v", "b"))
    assert key.startswith(keys.epoch_prefix("i", "p", "v", "b", 1))
    assert not key.startswith(keys.backup_prefix("i", "p", "v", ""))
    for below in (key, str(origin), keys.backup_prefix("i", "p", "v", "b"), "i/p/v/"):
        assert keys.volume_prefix_of(below) == "i/p/v/"
    tenth = keys.manifest_key(str(keys.Origin("i", "p", "v", "b", 10, 2, "0" * 16)))
    assert not tenth.startswith(keys.epoch_prefix("i", "p", "v", "b", 1))
