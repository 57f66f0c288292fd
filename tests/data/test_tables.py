"""Tables: files and DataFrames, columns of words, labels by the name of their column, and models of them."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from scipy.sparse import csr_matrix

import pyro_ssvae
from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData
from pyro_ssvae.data.tables import find_categories
from pyro_ssvae.distributions import Bernoulli, Categorical, Gaussian, Mixed
from pyro_ssvae.estimators import M1Transformer

from_table = SemiSupervisedData.from_table
CODES = "Columns of words are read as numbers"


def make_table(**columns):
    return pd.DataFrame(
        {
            "age": [20, 30, 40, 50, 60, 70],
            "colour": ["red", "green", "red", "blue", "green", "red"],
            "height": [1.5, 1.6, 1.7, 1.8, 1.9, 2.0],
            "smokes": [True, False, True, False, False, True],
            "class": ["ill", "well", None, "", "ill", "well"],
        }
        | columns
    )


def make_numbers(n=40, **columns):
    x = np.random.default_rng(0).normal(size=(n, 3)).round(3)
    return pd.DataFrame(x, columns=["a", "b", "c"]).assign(**{"kind": np.arange(n) % 2} | columns)


def test_columns_of_numbers_and_words():
    data = from_table(make_table(), "class")
    with pytest.warns(UserWarning, match=rf"{CODES}, their codes: colour \(3\)\. likelihood='auto'") as caught:
        M2.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood="gaussian")
    assert (len(caught), caught[0].filename) == (1, __file__)
    assert data.feature_names == ("age", "colour", "height", "smokes")
    assert data.categories == {"colour": ("blue", "green", "red")}
    assert data.x[:2].tolist() == [[20, 2, 1.5, 1], [30, 1, pytest.approx(1.6), 0]]
    assert (data.y.tolist(), data.class_names, data.name, data.scale) == (
        [0, 1, -1, -1, 0, 1],
        ("ill", "well"),
        "table",
        1.0,
    )
    assert (len(data.x_validation), len(data.x_test)) == (0, 0)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_files(ending, tmp_path):
    path, table = tmp_path / f"people{ending}", make_table()
    if ending == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="\t" if ending == ".tsv" else ",")  # with the index as a column without a name
    data, expected = from_table(path, "class"), from_table(table, "class")
    assert (data.name, data.feature_names, data.categories) == ("people", expected.feature_names, expected.categories)
    assert torch.equal(data.x, expected.x)
    assert torch.equal(data.y, expected.y)


@pytest.mark.parametrize(
    "text",
    [
        "u;v;y\n1;2,5;a\n3;4;b\n-5;6,25;\n",
        "u;v;y\n1;2.5;a\n3;4;b\n-5;6.25;\n",
        "u, v, y\n1, 2.5, a\n3, 4, b\n-5, 6.25,\n",
        "u|v|y\n1|2.5|a\n3|4|b\n-5|6.25|\n",
        "\ufeffu\tv\ty\n1\t2.5\ta\n3\t4\tb\n-5\t6.25\t\n",
        "\n\nu;v;y\n1;2,5;a\n3;4;b\n-5;6,25;\n",
        "u,v,y,,\n1,2.5,a,,\n3,4,b,,\n-5,6.25,,,\n",  # with separators at the end, as spreadsheets write them
    ],
)
def test_separators_and_decimal_commas(text, tmp_path):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    data = from_table(str(tmp_path / "a.csv"), "y")
    assert (data.feature_names, data.class_names) == (("u", "v"), ("a", "b"))
    assert (data.x.tolist(), data.y.tolist()) == ([[1, 2.5], [3, 4], [-5, 6.25]], [0, 1, -1])


@pytest.mark.parametrize(
    ("name", "separator", "columns"),
    [
        ("a.csv", ",", '"one; two; three; four",v,y'),
        ("a.csv", ";", '"one, two, three";v;y'),
        ("a.tsv", "\t", "u,v,w\tx\ty"),
    ],
)
def test_separators_in_names_of_columns(name, separator, columns, tmp_path):
    rows = ["1 2.5 a", "3 4 b"]
    (tmp_path / name).write_text("\n".join([columns, *(row.replace(" ", separator) for row in rows)]))
    data = from_table(tmp_path / name, "y")
    assert data.feature_names == tuple(part.strip('"') for part in columns.split(separator)[:2])
    assert data.x.tolist() == [[1, 2.5], [3, 4]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"u,y,y\n1,a,0\n2,b,1\n", "Two columns of the table are named y; rename one of them"),
        (b'u,y\n"1,5",a\n"2,25",b\n', "Column u holds numbers with commas, such as '1,5'; write them with a decimal"),
        (b'u,y\n"1,500",a\n900,b\n', "Column u holds numbers with commas, such as '1,500'"),
        (b"u,y\n47.5%,a\n3%,b\n", "Column u holds numbers with signs, such as '47.5%'; write the numbers alone"),
        (b"y,u,v\na,1,2,\nb,3,4,\n", "its rows have one cell more than its header, and the last one is empty"),
        ("u,y\n1,grün\n2,rot\n".encode("cp1252"), "a.csv cannot be read as a table: .* Save it as UTF-8"),
    ],
)
def test_what_is_written_otherwise_is_named(content, words, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        from_table(tmp_path / "a.csv", "y")


def test_types_of_pandas():
    table = pd.DataFrame({"n": pd.array([1, 2, 3], dtype="Int64"), "text": ["1", "2.5", "3"], "y": [3, 4, -1]})
    table["size"] = pd.Categorical(["small", "large", "small"], categories=["small", "medium", "large"])
    with pytest.warns(UserWarning, match="numbered from 0"):
        data = from_table(table, "y")
    assert data.categories == {"size": ("small", "medium", "large")}
    assert (data.x.tolist(), data.class_names) == ([[1, 1, 0], [2, 2.5, 2], [3, 3, 0]], ("3", "4"))
    words = pd.ArrowDtype(pyarrow.dictionary(pyarrow.int8(), pyarrow.string()))
    arrow = from_table(pd.DataFrame({"word": pd.Series(["b", None, "a"], dtype=words)}))
    assert (arrow.categories, arrow.x.nan_to_num(-1).tolist()) == ({"word": ("a", "b")}, [[1], [-1], [0]])


def test_empty_cells_are_missing_values(tmp_path):
    (tmp_path / "a.csv").write_text("u,colour,y\n1,red,0\n,blue,1\n3,,\n4,red,1\n")
    data = from_table(str(tmp_path / "a.csv"), "y")
    assert data.x.isnan().tolist() == [[False, False], [True, False], [False, True], [False, False]]
    model = M2.for_data(data, likelihood="auto", latent_dim=2, hidden_dims=(4,))
    assert model.predict(pd.DataFrame({"colour": [None, "red"], "u": [1.0, np.nan]})).shape == (2,)


def test_rows_are_held_out_and_labels_hidden():
    table = make_numbers()
    data = from_table(table, "kind", num_validation=4, num_test=6, num_labels=10, seed=3)
    assert (len(data.x), data.num_labelled, len(data.x_validation), len(data.x_test)) == (30, 10, 4, 6)
    rows = torch.cat([data.x, data.x_validation, data.x_test])
    expected = torch.tensor(table.sort_values("a")[["a", "b", "c"]].to_numpy()).float()
    assert torch.equal(rows[rows[:, 0].argsort()], expected)
    number = {tuple(row): kind for *row, kind in table.astype("float32").to_numpy().tolist()}
    assert [number[tuple(row)] for row in data.x_test.tolist()] == data.y_test.tolist()
    known = data.labelled_index
    assert [number[tuple(row)] for row in data.x[known].tolist()] == data.y[known].tolist()
    data = from_table(table, "kind", test=table[["c", "kind", "a", "b"]][:5])
    assert (len(data.x), len(data.x_validation)) == (40, 0)
    assert torch.equal(data.x_test, data.x[:5])
    assert data.y_test.tolist() == [0, 1, 0, 1, 0]


def test_few_numbers_and_words_are_categories(tmp_path):
    doors = ["2", "3", "4", "5more"] * 10  # of a car, in a well-known table
    make_numbers(doors=doors).to_csv(tmp_path / "cars.csv", index=False)
    data = from_table(tmp_path / "cars.csv", "kind")
    assert data.categories == {"doors": ("2", "3", "4", "5more")}
    assert data.x[:4, 3].tolist() == [0, 1, 2, 3]
    assert from_table(make_numbers(doors=[1, "two"] * 20), "kind").categories == {"doors": ("1", "two")}


def test_no_label_column_gives_examples_without_classes():
    data = from_table(make_numbers())
    assert (data.num_classes, data.feature_names) == (None, ("a", "b", "c", "kind"))
    assert from_table(make_numbers(), num_classes=4).num_classes == 4


@pytest.mark.parametrize(
    ("source", "options", "error", "text"),
    [
        (make_numbers(), {"label": "knd"}, ValueError, "no column knd. Did you mean kind?"),
        (make_numbers(), {"label": "species"}, ValueError, "no column species. Columns: a, b, c, kind."),
        (make_numbers(d=np.nan), {}, ValueError, "No row of the table has a value in column d; leave such columns out"),
        (make_numbers(d=np.nan), {"label": "d"}, ValueError, "No row has a label in column d"),
        (make_numbers(a=[1.0, np.inf] * 20), {}, ValueError, "table holds 20 values that are infinite"),
        (make_numbers(d=["1", "2", "?", "3"] * 10), {}, ValueError, r"numbers and 10 other values, such as '\?'"),
        (make_numbers(d=[1, 2, 3, "n/a"] * 10), {}, ValueError, "d holds numbers and 10 other values, such as 'n/a'"),
        (make_numbers(d=[*range(38), "a", "b"]), {}, ValueError, "d holds numbers and 2 other values, such as 'a'"),
        (make_numbers(120, d=[f"id{n}" for n in range(120)]), {}, ValueError, "d holds 120 different words"),
        (make_numbers(d=pd.Timestamp(2020, 1, 1)), {}, TypeError, "d holds values of kind datetime64"),
        (make_numbers(d=[[1, 2]] * 40), {}, TypeError, "d holds values of kind mixed"),
        (make_numbers()[["kind"]], {"label": "kind"}, ValueError, "no column but kind"),
        (make_numbers().rename(columns={"a": "b"}), {}, ValueError, "Two columns of the table are named b"),
        (make_numbers()[:0], {}, ValueError, "no values"),
        (np.zeros((4, 2)), {}, TypeError, "of type ndarray; pass the path of a table.*from_arrays reads arrays"),
        ("nowhere.csv", {}, FileNotFoundError, "nowhere.csv"),
        ("mine.xlsx", {}, ValueError, "mine.xlsx is no table by its name; .csv, .csv.gz"),
        (make_numbers(), {"test": make_numbers()[["a", "b"]]}, ValueError, "no column c, kind"),
        (make_numbers(), {"test": make_numbers(), "num_test": 3}, ValueError, "leave num_test out"),
        (make_numbers(), {"label": "kind", "num_test": 40}, ValueError, "of 40 examples leave none to train on"),
        (
            make_numbers(),
            {"label": "kind", "test": make_numbers(kind="c")},
            ValueError,
            "of the test rows holds the class 'c'",
        ),
        (
            make_numbers(),
            {"label": "kind", "test": make_numbers(kind=np.nan)},
            ValueError,
            "No row of the test table has a label in column kind",
        ),
        (make_numbers(), {"lable": "kind"}, TypeError, "Did you mean label?"),
    ],
)
def test_refused(source, options, error, text):
    with pytest.raises(error, match=text):
        from_table(source, **options)


def test_words_of_the_test_rows_must_be_known():
    words = r"Column colour holds 'mauve' in row 0 \(6 such rows\), which is none of .*: blue, green, red\. Leave"
    with pytest.raises(ValueError, match=words):
        from_table(make_table(), "class", test=make_table(colour="mauve"))


@pytest.mark.parametrize(("name", "content"), [("a.csv", b""), ("a.csv.gz", b"a,b\n1,2\n"), ("a.parquet", b"PAR1")])
def test_damaged_files(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read( as a table)?: "):
        from_table(tmp_path / name)


def test_a_file_that_would_not_fit_into_memory(tmp_path):
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(2**42)  # a hole, which takes no disk
    with pytest.raises(ValueError, match=r"huge.csv would take 13,194\.1 GB of memory"):
        from_table(tmp_path / "huge.csv")


def test_pandas_is_optional(monkeypatch, tmp_path):
    (tmp_path / "a.csv").write_text("a,y\n1,0\n2,1\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(pyro_ssvae.errors.MissingPackageError, match=r"pip install 'pyro-ssvae\[tables\]'"):
        from_table(tmp_path / "a.csv", "y")


def test_a_model_saves_the_names_and_takes_tables_by_them(tmp_path):
    table = make_table()
    data = from_table(table, "class")
    m2 = M2.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood="auto")
    assert sorted(m2.likelihood.columns) == [[0, 2], [1], [3]]
    kinds = {tuple(columns): part for columns, part in zip(m2.likelihood.columns, m2.likelihood.parts, strict=True)}
    assert [type(kinds[key]) for key in ((0, 2), (1,), (3,))] == [Gaussian, Categorical, Bernoulli]
    assert kinds[1,].levels == 3
    loaded = pyro_ssvae.load(pyro_ssvae.save(m2, tmp_path))
    assert (loaded.feature_names, loaded.categories) == (data.feature_names, data.categories)
    assert loaded.config() == m2.config()
    expected = m2.predict_proba(data.x)
    for rows in (table, table[["class", "smokes", "height", "colour", "age"]].assign(other="new")):
        torch.testing.assert_close(loaded.predict_proba(rows), expected)
    with pytest.raises(ValueError, match="no column colour"):
        loaded.predict(table.drop(columns="colour"))
    with pytest.raises(ValueError, match="Column age must hold numbers"):
        loaded.predict(table.assign(age="old"))
    stack = M1M2.from_m1(M1.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood="auto"), 2)
    assert (stack.feature_names, stack.categories) == (data.feature_names, data.categories)


def test_automatic_likelihood_of_one_kind():
    assert isinstance(M1.for_data(from_table(make_numbers(), "kind"), likelihood="auto").likelihood, Gaussian)
    data = from_table(make_numbers(d=["one", "two", "three", "one"] * 10)[["d"]])
    likelihood = M1.for_data(data, likelihood="auto").likelihood
    assert isinstance(likelihood, Categorical)
    assert likelihood.levels == 3
    assert not isinstance(likelihood, Mixed)
    data = from_table(make_numbers(d="one")[["d"]])
    assert isinstance(M1.for_data(data, likelihood="auto").likelihood, Bernoulli)


class Dataset:
    """What is used of a data set of Hugging Face."""

    def __init__(self, table):
        self.table = table

    def to_pandas(self):
        return self.table


def make_anndata():
    table = make_numbers()
    x = csr_matrix(np.where(table[["a", "b", "c"]] > 0, table[["a", "b", "c"]], 0.0))
    return SimpleNamespace(
        X=x, obs=table[["kind"]].set_axis(list(map(str, table.index))), var_names=pd.Index(["a", "b", "c"])
    )


def test_objects_that_hold_tables():
    table = make_numbers()
    expected = from_table(table, "kind")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = from_table(Dataset(table), "kind")
        assert torch.equal(data.x, expected.x)
        numbers = table[["a", "b", "c"]]
        assert torch.equal(SemiSupervisedData.from_arrays(Dataset(numbers), table["kind"]).x, expected.x)
        cells = make_anndata()
        data = from_table(cells, "kind")
        assert torch.equal(data.x, expected.x.clamp(min=0.0))
        assert torch.equal(data.y, expected.y)
        assert data.feature_names == ("a", "b", "c")
        assert torch.equal(SemiSupervisedData.from_arrays(cells, cells.obs["kind"]).x, data.x)
        assert torch.equal(SemiSupervisedData.from_arrays(cells.X, table["kind"]).x, data.x)
    with pytest.raises(ValueError, match="Did you mean kind"):
        from_table(cells, "kin")
    backed = SimpleNamespace(X=SimpleNamespace(to_memory=lambda: cells.X), obs=cells.obs, var_names=cells.var_names)
    assert torch.equal(from_table(backed, "kind").x, data.x)
    cells.X = None
    with pytest.raises(ValueError, match="source, an AnnData, has no .X; set it, for example to source.layers"):
        from_table(cells, "kind")


def test_estimators_take_cells():
    cells = make_anndata()
    latents = M1Transformer(max_steps=2, random_state=0).fit(cells)
    assert latents.feature_names_in_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(
        latents.transform(cells), latents.transform(pd.DataFrame(cells.X.toarray(), columns=["a", "b", "c"]))
    )


def test_prediction_takes_columns_of_any_table_by_name():
    cells = make_anndata()
    data = from_table(cells, "kind")
    m2 = M2.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood="gaussian")
    expected = m2.predict_proba(data.x)
    turned = SimpleNamespace(X=cells.X[:, ::-1], obs=cells.obs, var_names=cells.var_names[::-1])
    torch.testing.assert_close(m2.predict_proba(turned), expected)
    table = pd.DataFrame(data.x.numpy(), columns=data.feature_names)
    torch.testing.assert_close(m2.predict_proba(Dataset(table[["c", "b", "a"]])), expected)


def test_infinite_values_are_named_by_their_column():
    with pytest.raises(ValueError, match=r"in table\[0\], .*, column b; all must be finite"):
        from_table(make_numbers(b=np.inf), "kind")
    with pytest.raises(ValueError, match=r"in x_test\[0\], .*, column b; all must be finite"):
        from_table(make_numbers(), "kind", test=make_numbers(b=np.inf))


def test_categories_of_numbers_are_found_with_and_without_missing_cells():
    grades = pd.Series([1, 2, 3] * 4, dtype="category")
    table = pd.DataFrame({"x": np.arange(12.0), "grade": grades})
    data = from_table(table.assign(grade=grades.where(np.arange(12) > 0)))
    assert data.categories == {"grade": ("1", "2", "3")}
    assert data.x[:3, 1].nan_to_num(-1).tolist() == [-1, 1, 2]
    assert from_table(table, test=table.assign(grade=grades.astype(float))).x_test[:3, 1].tolist() == [0, 1, 2]
    old = M2(event_shape=(2,), num_classes=2, likelihood="gaussian")
    old.feature_names, old.categories = ("x", "grade"), {"grade": ("1.0", "2.0", "3.0")}  # of an earlier version
    assert torch.equal(old.predict_proba(table[:3]), old.predict_proba([[0.0, 0], [1, 1], [2, 2]]))


def test_labels_that_are_numbers_in_one_table_and_words_in_another():
    table, test = make_numbers(kind=["1", "2", "x", "1"] * 10), make_numbers(3, kind=[1, 2, np.nan])
    assert from_table(table, "kind", test=test).y_test.tolist() == [0, 1, -1]


def test_none_is_a_class_beside_other_words(tmp_path):
    path = tmp_path / "severity.csv"
    path.write_text("x,depth,y\n1,None,None\n2,3,Mild\n3,4,NA\n4,5,\n5,6,Severe\n6,7,None\n")
    with pytest.warns(UserWarning, match="'None' is a class"):
        data = from_table(path, "y")
    assert (data.class_names, data.y.tolist()) == (("Mild", "None", "Severe"), [1, 0, -1, -1, 2, 1])
    assert torch.isnan(data.x[0, 1])
    path.write_text("x,y\n1,None\n2,0\n3,1\n")
    assert from_table(path, "y").y.tolist() == [-1, 0, 1]


def test_categories_that_do_not_occur_count_only_where_they_are_few():
    words = pd.Series(["a", "b"] * 20)
    few, many = (words.astype(pd.CategoricalDtype([*"abc", *map(str, range(n))])) for n in (5, 200))
    data = from_table(make_numbers(few=few, many=many))
    assert (len(data.categories["few"]), data.categories["many"]) == (8, ("a", "b"))


def test_dates_and_lists_in_place_of_numbers_are_refused(tmp_path, monkeypatch):
    model = M2.for_data(from_table(make_numbers(), "kind"), likelihood="gaussian")
    with pytest.raises(TypeError, match="Column a must hold numbers"):
        model.predict(make_numbers(a=pd.Timestamp(2020, 1, 1)))
    lists = make_numbers(a=[[1, 2]] * 40)
    with pytest.raises(ValueError, match="Column a must hold numbers"):
        model.predict(lists)
    lists.to_parquet(tmp_path / "a.parquet")
    for most in (2**30, 8):  # in memory, and on disk
        monkeypatch.setattr("pyro_ssvae.data.rows.MAX_DENSE", most)
        with pytest.raises(TypeError, match="Column a holds values of kind mixed"):
            from_table(tmp_path / "a.parquet", "kind")


def test_the_word_nan_in_an_array_of_words_is_a_missing_value():
    words = np.array([["red", 1.0], [np.nan, 2.0], ["blue", 3.0]])
    assert find_categories(words)[0].tolist() == ["blue", "red"]


def test_arrays_that_are_tables_keep_the_names_of_their_columns():
    table = make_numbers(kind=0.5)
    data = SemiSupervisedData.from_arrays(table, np.arange(40) % 2, x_test=table.iloc[:3, ::-1])
    assert data.feature_names == ("a", "b", "c", "kind")
    assert torch.equal(data.x_test, data.x[:3])
    model = M2.for_data(data, likelihood="gaussian")
    assert torch.equal(model.predict_proba(table.iloc[:, ::-1]), model.predict_proba(table.to_numpy()))
    assert SemiSupervisedData.from_arrays(table.to_numpy()).feature_names == ()
    assert SemiSupervisedData.from_arrays(table.rename(columns={"a": "b"})).feature_names == ()
