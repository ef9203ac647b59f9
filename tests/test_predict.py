"""predict.py as Cog's static parser reads it, against what Python makes of it (facts: Cog, 2.3)."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from cog import Path as CogPath
from jsonschema import Draft4Validator

import predict
from yue_core import song
from yue_core.commands.schema import SCHEMA_FILE, openapi_schema, write_schema
from yue_core.errors import WeightsError

SOURCE = (Path(__file__).parent.parent / "predict.py").read_text()
INPUTS = [
    "genre_tags lyrics num_segments seed reference_audio reference_vocals reference_instrumental",
    "reference_start reference_end language max_new_tokens temperature top_p top_k guidance_scale",
    "repetition_penalty output output_format variations song redo_section",
]
TYPES = {"str", "int", "float", "bool", "Path", "int | None", "float | None", "Path | None"}


def method() -> ast.FunctionDef:
    """The predict method's syntax tree."""
    tree = ast.parse(SOURCE)
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    (found,) = [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "predict"]
    return found


def constants() -> dict[str, ast.expr]:
    """Module-level names bound to one literal."""
    assigned = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: node.value for node in assigned}


def literal_problem(node: ast.expr) -> str | None:
    """Why the static parser would misread an expression, if it would."""
    if isinstance(node, ast.Name):
        node = constants().get(node.id, node)
    if isinstance(node, ast.List):
        return next((problem for item in node.elts if (problem := literal_problem(item))), None)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if not isinstance(node, ast.Constant):
        return f"{ast.unparse(node)} is not a literal"
    if isinstance(node.value, str):
        text = ast.get_source_segment(SOURCE, node)
        assert text is not None
        if re.fullmatch(r'"""(.*)"""|"(.*)"', text, re.DOTALL) is None:
            return f"{text} is not one plain literal"
        if "\\" in text:
            return f"{text} holds an escape, which is published as two characters"
        if '"' in text.strip('"'):
            return f"{text} joins several literals"
    return None


def calls() -> dict[str, tuple[str, ast.Call]]:
    """Input name -> (annotation, Input call)."""
    arguments = method().args
    names = arguments.args[1:]
    assert len(names) == len(arguments.defaults), "every input has an Input()"
    assert [*arguments.kwonlyargs, *arguments.posonlyargs, arguments.vararg, arguments.kwarg] == [None, None]
    return {
        name.arg: (ast.unparse(name.annotation), default)
        for name, default in zip(names, arguments.defaults, strict=True)
    }


def test_the_inputs_are_these_in_this_order():
    assert list(calls()) == " ".join(INPUTS).split()


def test_every_input_is_in_the_safe_subset():
    for name, (annotation, call) in calls().items():
        assert annotation in TYPES, name
        assert isinstance(call, ast.Call), name
        assert ast.unparse(call.func) == "Input"
        assert call.args == [], f"{name}: the parser reads keywords only"
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        assert {"default", "description"} <= set(keywords) <= {"default", "description", "ge", "le", "choices"}
        for key, value in keywords.items():
            assert literal_problem(value) is None, f"{name}.{key}: {literal_problem(value)}"
            if key in ("ge", "le"):
                assert isinstance(value, ast.Constant), f"{name}.{key}: bounds are plain numbers"
        assert (ast.unparse(keywords["default"]) == "None") == annotation.endswith("None"), name


@pytest.mark.parametrize(
    "expression", ['f"a"', '"a" + "b"', "2 * 60", "dedent('a')", "[x for x in 'ab']", "UNKNOWN", "-(3 + 4)"]
)
def test_the_lint_finds_what_the_parser_misreads(expression):
    assert literal_problem(ast.parse(expression, mode="eval").body) is not None


def test_the_return_type_is_one_file():
    assert ast.unparse(method().returns) == "Path"


def test_defaults_in_the_schema_are_pythons_defaults():
    properties = openapi_schema("predict", "Predictor")["components"]["schemas"]["Input"]["properties"]
    tree = calls()
    for name, field in properties.items():
        node = {keyword.arg: keyword.value for keyword in tree[name][1].keywords}["default"]
        node = constants()[node.id] if isinstance(node, ast.Name) else node
        assert field["default"] == ast.literal_eval(node), name
        assert field.get("nullable", False) == (field["default"] is None), name
        assert field["description"].endswith("."), name


def test_nothing_is_required_so_one_click_gives_a_song():
    schema = openapi_schema("predict", "Predictor")["components"]["schemas"]["Input"]
    assert "required" not in schema


def test_the_schema_is_sound_and_names_types_and_bounds():
    schemas = openapi_schema("predict", "Predictor")["components"]["schemas"]
    for schema in schemas.values():
        Draft4Validator.check_schema(schema)
    properties = schemas["Input"]["properties"]
    assert properties["max_new_tokens"] | {"description": ""} == {
        "default": 3000,
        "description": "",
        "maximum": 6000,
        "minimum": 100,
        "title": "Max New Tokens",
        "type": "integer",
        "x-order": 10,
    }
    assert properties["top_p"]["minimum"] == 0.01
    assert properties["reference_audio"]["format"] == "uri"
    assert properties["output"]["allOf"] == [{"$ref": "#/components/schemas/output"}]
    assert schemas["Output"] == {"title": "Output", "type": "string", "format": "uri"}
    assert "minimum" not in properties["seed"], "a negative seed gets our sentence, not a 422"


def test_choices_and_sampling_defaults_are_the_nouns():
    schemas = openapi_schema("predict", "Predictor")["components"]["schemas"]
    assert tuple(schemas["output"]["enum"]) == song.OUTPUTS
    assert tuple(schemas["output_format"]["enum"]) == song.FORMATS
    assert tuple(schemas["language"]["enum"]) == song.LANGUAGES
    properties = schemas["Input"]["properties"]
    sampling = song.Sampling()
    for name in ["max_new_tokens", "temperature", "top_p", "top_k", "guidance_scale", "repetition_penalty"]:
        assert properties[name]["default"] == getattr(sampling, name), name
    assert properties["reference_end"]["default"] == song.Reference().end


def test_the_schema_file_is_written_once(tmp_path):
    path = write_schema(tmp_path)
    assert path == tmp_path / SCHEMA_FILE
    assert json.loads(path.read_text()) == openapi_schema("predict", "Predictor")
    before = path.stat().st_mtime_ns
    assert write_schema(tmp_path).stat().st_mtime_ns == before


def test_predict_is_sync_and_typed_for_cog():
    assert not inspect.iscoroutinefunction(predict.Predictor.predict)
    assert get_type_hints(predict.Predictor.predict)["return"] is CogPath


def test_missing_weights_are_fetched_where_the_image_says_so(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setenv("YUE_PROFILE", "en")
    monkeypatch.setenv("YUE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(predict, "fetch", lambda *given: calls.append(given))
    monkeypatch.setattr(predict, "check_ready", lambda *given: None)
    for name in ("Desk", "Guard"):
        monkeypatch.setattr(predict, name, lambda pipeline: pipeline)
    monkeypatch.setattr(predict.Pipeline, "load", lambda profile, precision: profile)
    predict.Predictor().setup()
    assert calls == [], "outside the image nothing is fetched unasked"
    monkeypatch.setenv("YUE_FETCH", "1")
    predictor = predict.Predictor()
    predictor.setup()
    assert calls == [("en", tmp_path)]
    assert predictor.desk == "en"


def test_setup_refuses_with_the_doctors_sentence_before_it_loads_anything(monkeypatch, tmp_path):
    monkeypatch.setenv("YUE_PROFILE", "en")
    monkeypatch.setenv("YUE_WEIGHTS", str(tmp_path))
    loaded = []
    monkeypatch.setattr(predict.Pipeline, "load", loaded.append)
    with pytest.raises(WeightsError) as doctors:
        predict.check_ready("en", None, 60.0)
    with pytest.raises(WeightsError, match="run scripts/weights fetch en") as setups:
        predict.Predictor().setup()
    assert str(setups.value) == str(doctors.value)
    assert loaded == []
