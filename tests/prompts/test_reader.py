import json
import logging
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from safetune.prompts import PromptPair, PromptRow, ReadSummary, read_prompts


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, **options: object) -> str:
    with pytest.raises(ValueError, match=r"\w") as mistake:
        read_prompts(path, **options)  # type: ignore[arg-type]
    return str(mistake.value)


def test_csv_with_every_column(tmp_path: Path) -> None:
    path = write(
        tmp_path / "prompts.csv",
        "prompt,safe_prompt,category,concept,seed,guidance,width,height,other\n"
        '"a man, with a gun",a man,violence,guns,7,7.5,512,768,x\n'
        "a tree,,,,,,,,\n",
    )
    table = read_prompts(path)
    assert table.rows == (
        PromptRow(1, "a man, with a gun", "a man", ("violence",), "guns", 7, 7.5, 512, 768),
        PromptRow(2, "a tree"),
    )
    assert table.rows[0].category == "violence" and table.rows[1].category == ""
    assert table.prompts == ["a man, with a gun", "a tree"]
    assert table.summary == ReadSummary(rows=2, kept=2)


def test_csv_with_a_byte_order_mark_crlf_and_a_line_break_in_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes('\ufeffprompt,seed\r\n"two\nlines",3\r\n größer ,4.0\r\n'.encode())
    assert read_prompts(path).rows == (PromptRow(1, "two\nlines", seed=3), PromptRow(2, "größer", seed=4))


def test_csv_rows_with_defects_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(
        b"prompt,category,seed\n"
        b"kept,violence,1\n"
        b"  ,violence,2\n"  # 2: empty
        b"\n"  # 3: blank line
        b"caf\xe9,violence,4\n"  # 4: Latin-1
        b"one, two,violence,5\n"  # 5: a cell too many
        b"short,violence\n"  # 6: a cell too few
        b"text,violence,six\n"  # 7: a seed that is no number
        b"text,violence,1.5\n"  # 8: nor whole
        b"text,violence,-1\n"  # 9: nor negative
        b"child,sexual,1\n"  # 10
        b"child,violence,18446744073709551615\n"
    )
    table = read_prompts(path)
    assert table.prompts == ["kept", "child"]
    assert table.rows[1] == PromptRow(11, "child", categories=("violence",), seed=18446744073709551615)
    assert table.summary == ReadSummary(
        rows=11, kept=2, empty=(2, 3), encoding=(4,), malformed=(5, 6, 7, 8, 9), age_in_sexual=(10,)
    )
    assert str(table.summary) == (
        "rows read: 11, prompts kept: 2; dropped 2 without a prompt (rows 2, 3); "
        "dropped 1 not UTF-8 (row 4); dropped 5 malformed (rows 5, 6, 7, 8, 9); "
        "dropped 1 naming an age in a sexual prompt (row 10)"
    )


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(
        b'{"prompt": "a tree", "seed": 3, "guidance": 4}\n'
        b'{"prompt": "a house", "category": "", "guidance": null}\n'
        b"\n"  # 3
        b'{"prompt": null}\n'  # 4
        b"{}\n"  # 5
        b'{"prompt": 5}\n'  # 6
        b'{"prompt": "x"\n'  # 7
        b'["prompt"]\n'  # 8
        b'{"prompt": "x", "seed": true}\n'  # 9
        b'{"prompt": "caf\xe9"}\n'  # 10
        b'{"prompt": "\\ud800"}\n'  # 11: half of a surrogate pair
        b'{"prompt": "caf\\u00e9\\u2028tree"}\n'
    )
    table = read_prompts(path)
    assert table.rows == (
        PromptRow(1, "a tree", seed=3, guidance=4),
        PromptRow(2, "a house"),
        PromptRow(12, "café\u2028tree"),
    )
    assert table.summary == ReadSummary(
        rows=12, kept=3, empty=(3, 4, 5), encoding=(10, 11), malformed=(6, 7, 8, 9)
    )


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    table = pyarrow.table(
        {
            "prompt": ["a tree", None, "a house"],
            "seed": pyarrow.array([3, 4, None], type=pyarrow.int64()),
            "guidance": pyarrow.array([4.5, 4.5, float("nan")], type=pyarrow.float32()),
            "image": [{"bytes": b"x"}, {"bytes": b"y"}, {"bytes": b"z"}],
        }
    )
    parquet.write_table(table, path)
    read = read_prompts(path)
    assert read.rows == (PromptRow(1, "a tree", seed=3, guidance=4.5), PromptRow(3, "a house"))
    assert read.summary == ReadSummary(rows=3, kept=2, empty=(2,))


def test_parquet_text_that_is_not_utf8_costs_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    texts = pyarrow.array([b"a tree", b"caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"prompt": texts}), path)
    assert read_prompts(path).summary == ReadSummary(rows=2, kept=1, encoding=(2,))


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.csv", "Caption,group\na tree,plants\n")
    table = read_prompts(path, columns={"prompt": "Caption", "category": "group"})
    assert table.rows == (PromptRow(1, "a tree", categories=("plants",)),)


def test_a_missing_column_is_named_with_what_to_type(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.csv", "promt,category\nsecret text,hate\n")
    text = message(path)
    assert "no column 'prompt' (did you mean promt?) for prompt" in text
    assert 'columns={"prompt": "..."}' in text
    assert "The file's columns: promt, category. Layouts: plain, i2p, coprov2" in text
    assert "secret" not in text


def test_all_mistakes_in_columns_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.csv", "text,category\na,b\n")
    text = message(path, columns={"prompts": "text", "seed": "sed"})
    assert "no field 'prompts' (did you mean prompt?); allowed: prompt, safe_prompt, category" in text
    assert "no column 'prompt' for prompt" in text
    assert "no column 'sed' for seed" in text


def test_a_header_that_is_a_prompt_is_not_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.csv", "a secret prompt,id\nanother secret,1\n")
    text = message(path)
    assert "secret" not in text
    assert "(column 1, not shown: not one word), id" in text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("prompts.txt", b"x", "prompts are read from .csv, .jsonl, .parquet files, got '.txt'"),
        ("prompts.csv", b"", "The file's columns: none"),
        ("prompts.csv", b'prompt\n"secret', "not CSV, line 2: unexpected end of data"),
        ("prompts.csv", b"prompt,seed,prompt\nsecret,1,secret\n", "column 3 has the name of an earlier one"),
        ("prompts.csv", "prompt\nsecret\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (
            "prompts.csv",
            b"prompt\n \n",
            "no prompt is left: rows read: 1, prompts kept: 0; dropped 1 without",
        ),
        ("prompts.parquet", b"secret", "not a parquet file that can be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    text = message(tmp_path / name)
    assert expected in text
    assert "secret" not in text


def test_unknown_file_and_layout(tmp_path: Path) -> None:
    assert message(tmp_path / "none.csv").endswith("none.csv: no such file")
    path = write(tmp_path / "prompts.csv", "prompt\na\n")
    assert message(path, layout="i2") == "no layout 'i2' (did you mean i2p?); allowed: plain, i2p, coprov2"


def test_guidance_out_of_range_is_replaced_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.csv", "prompt,guidance\na,30\nb,30.5\nc,-1\nd,inf\ne,0\nf,\n")
    table = read_prompts(path)
    assert [row.guidance for row in table.rows] == [30, 7.5, 7.5, 7.5, 0, None]
    assert table.summary.guidance_replaced == (2, 3, 4)
    assert str(table.summary).endswith("guidance scale replaced in 3 (rows 2, 3, 4)")


I2P_HEADER = "prompt,categories,hard,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n"


def test_i2p(tmp_path: Path) -> None:
    path = write(
        tmp_path / "i2p.csv",
        I2P_HEADER
        + 'first,"hate, shocking",0,3747357700,7.5,512,512\n'
        + ",violence,0,5,7.0,512,512\n"
        + "third,self-harm,1,6,255,512,768\n"
        + 'fourth child,"violence, sexual",0,7,7.5,512,512\n',
    )
    table = read_prompts(path, layout="i2p")
    assert table.rows == (
        PromptRow(1, "first", None, ("hate", "shocking"), "", 3747357700, 7.5, 512, 512),
        PromptRow(3, "third", None, ("self-harm",), "", 6, 7.5, 512, 768),
    )
    assert table.rows[0].category == "hate"
    assert table.summary == ReadSummary(
        rows=4, kept=2, empty=(2,), age_in_sexual=(4,), guidance_replaced=(3,)
    )


def test_i2p_needs_its_columns(tmp_path: Path) -> None:
    text = message(write(tmp_path / "prompts.csv", "prompt,category\na,b\n"), layout="i2p")
    for column in ("categories", "evaluation_seed", "evaluation_guidance"):
        assert f"no column '{column}'" in text
    assert "sd_image_width" not in text


COPRO = (
    "prompt,image,category\n"
    "unsafe 1,u_0.jpg,hate\n"
    "safe 1,s_0.jpg,hate\n"
    "unsafe 2,u_1.jpg,hate\n"
    "unsafe 3,images/u_2.jpg,violence\n"
    "safe 3,images/s_2.jpg,violence\n"
    "safe 2,s_1.jpg,hate\n"
)


def test_coprov2_pairs_by_order_within_a_category(tmp_path: Path) -> None:
    table = read_prompts(write(tmp_path / "copro.csv", COPRO), layout="coprov2")
    assert table.rows == (
        PromptRow(1, "unsafe 1", "safe 1", ("hate",)),
        PromptRow(3, "unsafe 2", "safe 2", ("hate",)),
        PromptRow(4, "unsafe 3", "safe 3", ("violence",)),
    )
    assert table.summary == ReadSummary(rows=6, kept=3)
    assert table.pairs()[:2] == [
        PromptPair("unsafe 1", "safe 1", "hate", "hate"),
        PromptPair("safe 1", "safe 1", "", ""),
    ]


def test_a_dropped_coprov2_row_takes_its_partner_along_and_shifts_nobody(tmp_path: Path) -> None:
    path = tmp_path / "copro.csv"
    path.write_bytes(
        b"prompt,image,category\n"
        b"unsafe 1,u_0.jpg,hate\n"
        b",s_0.jpg,hate\n"  # 2: empty
        b"\n"  # 3: blank line, no row of the order
        b"unsaf\xe9,u_1.jpg,hate\n"  # 4: Latin-1
        b"safe 2,s_1.jpg,hate\n"
        b"unsafe 3,u_2.jpg,hate\n"
        b"safe 3,s_2.jpg,hate\n"
        b"label,u_3.jpg,sexual\n"  # 8: the safe half names an age
        b"aged 15,s_3.jpg,sexual\n"
    )
    table = read_prompts(path, layout="coprov2")
    assert table.rows == (PromptRow(6, "unsafe 3", "safe 3", ("hate",)),)
    assert table.summary == ReadSummary(rows=9, kept=1, empty=(2, 3), encoding=(4,), age_in_sexual=(8,))


def test_coprov2_without_a_category_is_one_order(tmp_path: Path) -> None:
    path = tmp_path / "copro.jsonl"
    rows = [("unsafe 1", "u_0.png"), ("unsafe 2", "u_1.png"), ("safe 1", "s_0.png"), ("safe 2", "s_1.png")]
    write(path, "".join(json.dumps({"prompt": prompt, "image": image}) + "\n" for prompt, image in rows))
    table = read_prompts(path, layout="coprov2")
    assert [(row.prompt, row.safe_prompt) for row in table.rows] == [
        ("unsafe 1", "safe 1"),
        ("unsafe 2", "safe 2"),
    ]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("secret,u_9.jpg,hate\n", "category of row 1 has 3 unsafe (u_*) and 2 safe (s_*) rows"),
        ("secret,9.jpg,hate\n", "row 7 cannot be paired: its image must be named u_* (unsafe) or s_* (safe)"),
        ("secret,,hate\n", "row 7 cannot be paired"),
        ("secret,with,u_9.jpg,hate\n", "row 7 cannot be paired"),
    ],
)
def test_coprov2_rows_that_do_not_pair_are_an_error(tmp_path: Path, extra: str, expected: str) -> None:
    text = message(write(tmp_path / "copro.csv", COPRO + extra), layout="coprov2")
    assert expected in text
    assert "secret" not in text


def test_pairs_to_train_on(tmp_path: Path) -> None:
    path = write(
        tmp_path / "prompts.csv",
        "prompt,safe_prompt,category,concept\n"
        "harmful 1,safe,violence,guns\n"
        "harmful 2,safe,,\n"
        "harmful 3,,violence,\n"
        "clean,clean,,\n",
    )
    assert read_prompts(path).pairs() == [
        PromptPair("harmful 1", "safe", "violence", "guns"),
        PromptPair("safe", "safe", "", ""),
        PromptPair("harmful 2", "safe", "harmful", "harmful"),
        PromptPair("clean", "clean", "", ""),
    ]


def test_pairs_need_a_safe_prompt(tmp_path: Path) -> None:
    table = read_prompts(write(tmp_path / "prompts.csv", "prompt\na\n"))
    with pytest.raises(ValueError, match="none of 1 prompts has a safe_prompt: add that column"):
        table.pairs()


def test_the_log_holds_the_summary_and_no_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "prompts.csv", "prompt,seed\nsecret,1\nsecret,x\n")
    with caplog.at_level(logging.DEBUG):
        read_prompts(path)
    assert caplog.messages == ["prompts.csv: rows read: 2, prompts kept: 1; dropped 1 malformed (row 2)"]
