"""Records of WARC and ARC files: any layout of gzip members, any writer, any damage."""

import gzip
import io
import itertools
import random
import re

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources import archive
from data_prep.sources.archive import LostFile, LostRecord, Record

# What bgzip writes at the end of a file: a member that holds nothing.
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
NOTHING = (gzip.compress(b"", mtime=0), BGZIP_END, gzip.compress(b"\r\n\r\n", mtime=0))
LIMIT = 1 << 20


def block_of(number, size=40):
    noise = random.Random(number).randbytes(size)
    return b"HTTP/1.1 200 OK\r\n\r\n%d: " % number + noise


def warc(number, kind="response", block=None):
    block = block_of(number) if block is None else block
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\n"
        f"WARC-Target-URI: http://a.example/{number}\r\n"
        "WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def arc(number, version, block=None):
    block = block_of(number) if block is None else block
    more = " 200 - - 1234 x.arc.gz" if version == 2 else ""
    head = f"http://a.example/{number} 192.0.2.1 20080101000000 text/html{more}"
    return head.encode() + b" %d\n" % len(block) + block + b"\n"


def arc_head(version):
    about = (
        b"2 0 org\nURL IP-address Archive-date Content-type Result-code Checksum "
        b"Location Offset Filename Archive-length\n"
        if version == 2
        else b"1 0 org\nURL IP-address Archive-date Content-type Archive-length\n"
    )
    more = b" 200 - - 0 x.arc" if version == 2 else b""
    head = b"filedesc://x.arc 0.0.0.0 20080101000000 text/plain" + more
    return head + b" %d\n" % len(about) + about + b"\n"


def wanted(numbers):
    return [Record(f"http://a.example/{n}", "", block_of(n)) for n in numbers]


def read(data, limit=LIMIT):
    return list(archive.read_records(io.BytesIO(data), max_block_bytes=limit))


def zipped(*parts):
    return [gzip.compress(part, mtime=0) for part in parts]


def test_requests_and_other_records_are_passed_over():
    kinds = ("warcinfo", "request", "response", "metadata", "revisit", "resource")
    data = b"".join(zipped(*[warc(i, kind) for i, kind in enumerate(kinds)]))
    assert read(data) == wanted([2])


@pytest.mark.parametrize("form", ["warc", "arc1", "arc2"])
@given(st.data())
def test_records_are_read_in_any_layout(form, data):
    """Plain; a member for each, or for all, or cut anywhere; members of nothing."""
    count = data.draw(st.integers(1, 5))
    if form == "warc":
        parts = [warc(100, "warcinfo"), *[warc(i) for i in range(count)]]
    else:
        version = int(form[-1])
        parts = [arc_head(version), *[arc(i, version) for i in range(count)]]
    whole = b"".join(parts)
    layout = data.draw(st.sampled_from(["plain", "one", "each", "anywhere"]))
    if layout == "plain":
        assert read(whole) == wanted(range(count))
        return
    if layout == "anywhere":
        cuts = st.integers(0, len(whole))
        ends = sorted(data.draw(st.lists(cuts, max_size=6)))
        # What is left of "http:" would be a scheme, too.
        ends = [end for end in ends if not re.match(rb"[a-z]+:", whole[end:])]
        parts = [whole[a:b] for a, b in itertools.pairwise([0, *ends, len(whole)])]
    members = [] if layout == "one" else zipped(*parts)
    if layout == "one":
        members = zipped(whole)
    nothing = st.lists(st.sampled_from(NOTHING[:2]), max_size=3)
    between = [data.draw(nothing) for _ in members]
    out = b"".join(b"".join([*n, m]) for n, m in zip(between, members, strict=True))
    end = b"".join(data.draw(nothing)) + bytes(data.draw(st.integers(0, 9)))
    assert read(out + end) == wanted(range(count))


def test_members_of_line_ends_lie_between_records():
    members = [NOTHING[2], *zipped(warc(0)), NOTHING[2], NOTHING[2], *zipped(warc(1))]
    assert read(b"".join(members)) == wanted([0, 1])


FIELDS = ("WARC-Type", "WARC-Target-URI", "Content-Length", "Content-Type")


@given(
    st.integers(0, 2**20),
    st.sampled_from([b"", b" ", b"\t"]),
    st.sampled_from([b"", b" ", b" \t "]),
    st.sampled_from([b"\r\n", b"\n"]),
    st.booleans(),
)
def test_fields_are_read_in_any_case_with_any_space(
    seed, before_colon, after, end, folds
):
    rng = random.Random(seed)

    def rewritten(field):
        name, value = field[1], field[2]
        cased = bytes(rng.choice((c, ord(chr(c).upper()))) for c in name.lower())
        fold = end + b" " if folds and rng.random() < 0.5 else b""
        return b"\r\n" + cased + before_colon + b":" + fold + after + value + after

    record = warc(0)
    head, _, rest = record.partition(b"\r\n\r\n")
    head = re.sub(rb"\r\n([\w-]+): ([^\r]*)", rewritten, head)
    head = re.sub(rb"\r\n", lambda _: end, head)
    odd = head + end + end + rest
    assert read(b"".join(zipped(warc(1), odd, warc(2)))) == wanted([1, 0, 2])


def test_what_the_crawler_identified_and_angle_brackets_are_read():
    record = warc(0).replace(b"http://a.example/0", b"<http://a.example/\xc3\xa9>")
    named = record.replace(
        b"\r\nContent-L", b"\r\nwarc-identified-payload-TYPE: text/html\r\nContent-L"
    )
    found = Record("http://a.example/é", "text/html", block_of(0))
    assert read(b"".join(zipped(named))) == [found]


def test_an_arc_line_may_hold_more_than_it_should():
    block = block_of(7)
    for line in (
        b"http://a.example/7 192.0.2.1 20080101000000 text/html; charset=x %d\n",
        b"http://a.example/7 2001:db8::1 20080101000000 no-type %d\n",
        b"http://a.example/7 0.0.0.0 20080101000000 %d\r\n",
        b"http://a.example/7 host.example 200801010000 text/html %d \n",
    ):
        assert read(arc_head(1) + line % len(block) + block + b"\n") == wanted([7])
    dns = b"dns:a.example 192.0.2.1 20080101000000 text/dns 4\n1234\n"
    spaced = arc(7, 1).replace(b"example/7", b"example/a b 1 2")
    (found,) = read(arc_head(1) + dns + spaced)
    assert found.url == "http://a.example/a b 1 2"


def test_a_block_is_cut_off_at_the_limit_and_the_file_goes_on():
    big = warc(0, block=b"a" * 500_000)
    for data in (big + warc(1), b"".join(zipped(big, warc(1)))):
        first, second = read(data, limit=1000)
        assert first.block == b"a" * 1000
        assert [second] == wanted([1])


def losses(found):
    return [f for f in found if not isinstance(f, Record)]


def records(found):
    return [f for f in found if isinstance(f, Record)]


def test_one_damaged_byte_costs_its_member_only():
    members = zipped(*[warc(i) for i in range(4)])
    start = len(members[0])
    for position in range(len(members[1])):
        for flip in (0x01, 0x80, 0xFF):
            data = bytearray(b"".join(members))
            data[start + position] ^= flip
            found = read(bytes(data))
            lost = [*wanted([0]), LostRecord(), *wanted([2, 3])]
            # A few bits say nothing: flags, time, the end of the last byte.
            assert found in (lost, wanted(range(4))), position
            assert found == lost or not 10 < position < len(members[1]) - 9


def test_a_damaged_last_member_is_a_lost_file():
    members = zipped(*[warc(i) for i in range(3)])
    harmless = 0
    for position in range(10, len(members[2])):
        data = bytearray(b"".join(members))
        data[position - len(members[2])] ^= 0xFF
        found = read(bytes(data))
        if losses(found):
            assert found[:2] == wanted([0, 1])
            assert len(found) == 3 and isinstance(found[2], LostFile)
        else:
            assert found == wanted(range(3))
            harmless += 1
    assert harmless < 3  # the end of the last byte


def test_every_second_member_may_be_damaged():
    members = zipped(*[warc(i) for i in range(9)])
    members[1::2] = [m[:60] + b"\0\0\0\0" + m[64:] for m in members[1::2]]
    found = read(b"".join(members))
    assert records(found) == wanted(range(0, 9, 2))
    assert losses(found) == [LostRecord()] * 4


@pytest.mark.parametrize(
    "junk",
    [
        b"junk", b"\0\0\0\0junk", b"\x1f\x8b\x08", b"\x1f\x8b\x08\0" * 50,
        gzip.compress(b"<html>no record", mtime=0), gzip.compress(warc(5))[:-20],
        gzip.compress(b"WARC/1.0\r\n" + b"a" * 99_999), gzip.compress(b"WARC/1.0\r\n"),
    ],
)  # fmt: skip
def test_what_is_no_record_between_members_is_one_loss(junk):
    first, second = zipped(warc(0), warc(1))
    assert read(first + junk + second) == [*wanted([0]), LostRecord(), *wanted([1])]


@pytest.mark.parametrize("length", [b"0", b"30", b"99", b"9999999", b"", b"-1", b"x"])
@pytest.mark.parametrize("is_gzip", [True, False])
def test_a_record_that_lies_about_its_length_costs_itself(length, is_gzip):
    head, _, rest = warc(1).partition(b"Content-Length: ")
    lying = head + b"Content-Length: " + length + rest[2:]
    parts = [warc(0), lying, warc(2), warc(3)]
    data = b"".join(zipped(*parts) if is_gzip else parts)
    found = read(data)
    assert records(found)[0] == wanted([0])[0]
    if is_gzip or length in (b"0", b"30", b"", b"-1", b"x"):
        assert records(found)[-2:] == wanted([2, 3])
        assert losses(found) == [LostRecord()]
    else:
        assert losses(found)


def test_damage_in_a_member_of_many_records_costs_what_follows_in_it():
    some = b"".join(warc(i) for i in range(3))
    members = zipped(some, b"".join(warc(i) for i in range(3, 200)), warc(200))
    members[1] = members[1][:-100] + bytes(50) + members[1][-50:]
    found = read(b"".join(members))
    numbers = [int(r.url.rpartition("/")[2]) for r in records(found)]
    assert numbers[:3] == [0, 1, 2] and numbers[-1] == 200
    assert numbers == sorted(set(numbers))
    assert records(found) == wanted(numbers)
    assert losses(found) == [LostRecord()]


@given(st.data())
def test_no_damage_raises_or_invents_a_record(data):
    parts = [warc(i) for i in range(3)]
    form = data.draw(st.sampled_from(["plain", "one", "each", "arc"]))
    if form == "arc":
        parts = [arc_head(1), *[arc(i, 1) for i in range(3)]]
    whole = b"".join(parts)
    content = {"one": b"".join(zipped(whole)), "each": b"".join(zipped(*parts))}
    damaged = bytearray(content.get(form, whole))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "remove"]))
        if kind == "change":
            damaged[position] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            damaged[position:position] = data.draw(st.binary(max_size=20))
        else:
            del damaged[position : None if kind == "cut" else position + 5]
        if not damaged:
            break
    found = read(bytes(damaged))
    # Where an ARC breaks off just after its first record, which describes the file,
    # nothing tells that there was more.
    line, _, rest = bytes(damaged).partition(b"\n")
    head = re.fullmatch(rb"filedesc:.* (\d+)", line)
    size = int(head[1]) if head else -1
    assert found or len(rest.rstrip(b"\r\n")) <= size <= len(rest)
    assert len(records(found)) <= 3
    if form == "each":  # checksums tell; in one member the next record's beginning
        assert all(record in wanted(range(3)) for record in records(found))


@given(st.binary(max_size=300), st.sampled_from([b"", b"WARC/1.0\r\n", b"\x1f\x8b"]))
def test_any_bytes_are_read(data, before):
    found = read(before + data)
    assert found and isinstance(found[-1], LostFile) or not losses(found)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"<html>hello", "not_warc"),
        (b"PK\x03\x04" + bytes(99), "not_warc"),
        (gzip.compress(b"<html>hello\r\n\r\n" * 10), "corrupt_warc"),
        (b"\x1f\x8b garbage", "corrupt_warc"),
        (warc(0)[:-20], "truncated_warc"),
        (gzip.compress(warc(0))[:-1], "truncated_warc"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_lost_file(data, reason):
    assert read(data) == [LostFile(reason)]


class Counted(io.BytesIO):
    """Counts the bytes that are read of it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_a_file_of_damaged_members_is_read_a_bounded_number_of_times():
    members = zipped(*[warc(i, block=block_of(i, 20_000)) for i in range(100)])
    broken = [m[:9_000] + bytes(200) + m[9_200:] for m in members]
    file = Counted(b"".join([*broken, *zipped(warc(0))]))
    found = list(archive.read_records(file, max_block_bytes=LIMIT))
    assert found == [LostRecord()] * 100 + wanted([0])
    assert file.count < 10 * len(file.getvalue())


def frames(*parts, dictionary=None):
    """What writers of .warc.zst files write: a frame for each record."""
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    return b"".join(map(compressor.compress, parts))


def skippable(data):
    return b"\x5d\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


RECORDS = [warc(100, "warcinfo"), *(warc(i) for i in range(4))]
DICTIONARY = zstandard.ZstdCompressionDict(b"WARC/1.0\r\nWARC-Type: response\r\n" * 20)


@pytest.mark.parametrize(
    "data",
    [
        frames(*RECORDS),
        frames(b"".join(RECORDS)),
        skippable(DICTIONARY.as_bytes()) + frames(*RECORDS, dictionary=DICTIONARY),
        skippable(frames(DICTIONARY.as_bytes()))
        + frames(*RECORDS, dictionary=DICTIONARY),
    ],
    ids=["each", "one", "dictionary", "compressed dictionary"],
)
def test_zstd_files_are_read_with_and_without_a_dictionary(data):
    assert read(data) == wanted(range(4))


def test_a_damaged_zstd_file_is_lost_from_there_on():
    data = frames(*RECORDS)
    start = len(frames(*RECORDS[:3]))
    for damaged, reason in (
        (data[: start + 20], "truncated_warc"),
        (data[:start] + b"\0" * 9 + data[start:], "corrupt_warc"),
    ):
        *found, lost = read(damaged)
        assert found in (wanted(range(1)), wanted(range(2)))
        assert lost == LostFile(reason)
    assert read(data[:3]) == [LostFile("not_warc")]
    assert read(data[:4] + b"\xff" * 50) == [LostFile("corrupt_warc")]
    assert read(skippable(b"x")[:6]) == [LostFile("empty_file")]


def test_a_zstd_file_may_break_off_after_another_damage():
    data = frames(warc(0) + b"no record\n" * 3) + frames(warc(1, block=bytes(99_999)))
    assert read(data[:-9]) == [*wanted([0]), LostFile("truncated_warc")]
    data = data[:-9] + b"\xff" * 9
    assert read(data) == [*wanted([0]), LostFile("corrupt_warc")]
