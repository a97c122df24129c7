from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernels.machine_code import SHARED_KB, Figures, faults, figures

TOOL = Path(__file__).with_name("offline.py")
GOOD = Figures(
    registers=200,
    spills=0,
    shared=64 * 1024,
    instructions=1000,
    moved=200,
    wide=180,
    mma={"HGMMA": 8, "IGMMA": 4},
)
LISTING = """
        .section        .text._attend,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R24, desc[UR20][R2.64] ;
        /*0020*/              @!P0 LDG.E.U8 R24, desc[UR20][R2.64] ;
        /*0030*/              @P0 LDGSTS.E.BYPASS.128 [R9], desc[UR20][R2.64] ;
        /*0040*/                   UTMALDG.2D [UR8], [UR4], desc[UR6] ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4].tnspB, RZ, !UPT ;
        /*0060*/                   STL.64 [R1], R4 ;
        /*0070*/                   LDL R5, [R1+0x4] ;
        /*0080*/                   STG.E desc[UR4][R2.64], R5 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3) ;
        /*00b0*/                   NOP;
        /*10000*/                  NOP ;
"""


def run(*flags: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_kernels_compile_within_their_limits_on_every_target() -> None:
    run("--short")


@pytest.mark.slow
def test_every_call_compiles_within_its_limits_on_every_target() -> None:
    run()


def test_a_listing_is_counted() -> None:
    found = figures(LISTING, "", registers=40, shared=512)
    assert (found.registers, found.shared, found.spills, found.mma) == (40, 512, 2, {"HGMMA": 1})
    assert (found.instructions, found.moved, found.wide) == (11, 37, 32)


@pytest.mark.parametrize(("layout", "scalar"), [("blocked", 1), ("nvidia_mma", 0)])
def test_a_dot_without_tensor_cores_is_seen(layout: str, scalar: int) -> None:
    ttgir = (
        "#blocked = #ttg.blocked<{order = [1, 0]}>\n"
        f"#mine = #ttg.{layout}<{{order = [1, 0]}}>\n"
        "%d = tt.dot %a, %b, %c, inputPrecision = ieee : tensor<64x64xf32, #ttg.dot_op<{opIdx = 0, "
        "parent = #mine}>> * tensor<64x64xf32, #ttg.dot_op<{opIdx = 1, parent = #mine}>>"
        " -> tensor<64x64xf32, #mine> loc(#loc)\n"
    )
    assert figures("", ttgir, registers=1, shared=0).scalar_dots == scalar


def test_a_kernel_within_its_limits_is_accepted() -> None:
    assert faults(GOOD, GOOD, 90, dots=("float", "int8")) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spills": 1}, ("1 accesses to local memory", "allowed are 0")),
        ({"registers": 256}, ("256 registers", "allowed are 255")),
        ({"shared": 228 * 1024}, ("233472 bytes of shared memory", "allowed are 232448")),
        ({"scalar_dots": 2}, ("2 products of tiles without tensor cores", "allowed are 0")),
        ({"mma": {"HGMMA": 8}}, ("{'HGMMA': 8}", "needed are ['IGMMA']")),
        ({"mma": {}}, ("none", "needed are ['HGMMA', 'IGMMA']")),
        ({"wide": 149}, ("149 of 200 bytes", "needed are 75%")),
        ({"instructions": 1051}, ("1051 instructions", "recorded are 1000", "5%")),
        ({"instructions": 949}, ("949 instructions", "recorded are 1000", "5%")),
    ],
)
def test_a_broken_limit_is_told_with_what_is_allowed(
    change: dict[str, object], words: tuple[str, ...]
) -> None:
    (fault,) = faults(replace(GOOD, **change), GOOD, 90, dots=("float", "int8"))
    assert all(word in fault for word in words), fault


def test_instructions_count_only_beside_a_record_of_the_same_compiler() -> None:
    assert faults(replace(GOOD, instructions=5000), None, 90) == []


def test_shared_memory_is_limited_by_the_target() -> None:
    large = replace(GOOD, shared=100 * 1024)
    assert [target for target in SHARED_KB if faults(large, None, target)] == [89, 120]


def test_exceptions_are_allowed_as_far_as_they_go() -> None:
    assert faults(replace(GOOD, spills=4), None, 90, spills=4) == []
    assert len(faults(replace(GOOD, spills=5), None, 90, spills=4)) == 1
    assert faults(replace(GOOD, wide=0), None, 90, narrow=True) == []
