/* SPDX-License-Identifier: MIT */
/*
 * The inner loops of local_state.py and of `place_of`: they are gone through wherever an actor of
 * the explorer stops. Here and not in csrc, since it is Python's frames that are looked at; only
 * what the stable ABI has is used.
 *
 * All that decides anything is handed in. What is borrowed is borrowed from containers that the
 * caller holds; wherever Python code might run meanwhile, and let go of it, a reference is held.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

static PyObject *cell_contents, *co_filename, *dict_name, *f_back, *f_code, *f_lasti, *f_locals,
    *name_name;

/* What `unchanged` takes, by place: lists of equal length side by side. */
enum seen {
	SEEN_CELLS,   /* variables of closures */
	SEEN_INSIDES, /* what they were bound to */
	SEEN_OBJECTS,
	SEEN_KINDS,   /* their classes */
	SEEN_HOLDERS, /* objects with a dict of attributes */
	SEEN_DICTS,   /* these dicts */
	SEEN_SLOTTED, /* objects with a slot, once for each slot */
	SEEN_SLOTS,   /* the slot's name */
	SEEN_VALUES,  /* what was in it */
	SEEN_PARTS,   /* what can be gone through */
	SEEN_SIZES,   /* how many items each had */
	SEEN_CONTENT, /* all these items, one after the other */
	SEEN_LISTS
};

/* The answer to "is that so?": 1, 0, or -1 with an exception set. */
typedef int answer;

static answer same_and_done(PyObject *now, PyObject *before)
{
	const bool same = now == before;

	Py_DECREF(now);
	return same;
}

static answer same_cells(PyObject *cells, PyObject *insides)
{
	const Py_ssize_t count = PyList_Size(cells);

	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *now = PyObject_GetAttr(PyList_GetItem(cells, i), cell_contents);

		if (!now)
			return -1;
		if (!same_and_done(now, PyList_GetItem(insides, i)))
			return 0;
	}
	return 1;
}

static answer same_kinds(PyObject *objects, PyObject *kinds)
{
	const Py_ssize_t count = PyList_Size(objects);

	for (Py_ssize_t i = 0; i < count; i++) {
		if ((PyObject *)Py_TYPE(PyList_GetItem(objects, i)) != PyList_GetItem(kinds, i))
			return 0;
	}
	return 1;
}

/* Not through the class, which may do something else with the names of attributes. A property in
 * the place of a slot may do anything, though. */
static answer same_attribute(PyObject *item, PyObject *name, PyObject *before)
{
	PyObject *now;

	if (!item || !name || !before)
		return -1;
	Py_INCREF(item);
	Py_INCREF(name);
	now = PyObject_GenericGetAttr(item, name);
	Py_DECREF(name);
	Py_DECREF(item);
	return now ? same_and_done(now, before) : -1;
}

static answer same_dicts(PyObject *holders, PyObject *dicts)
{
	const Py_ssize_t count = PyList_Size(holders);
	answer same = 1;

	for (Py_ssize_t i = 0; same == 1 && i < count; i++)
		same =
		    same_attribute(PyList_GetItem(holders, i), dict_name, PyList_GetItem(dicts, i));
	return same;
}

static answer same_slots(PyObject *slotted, PyObject *slots, PyObject *values)
{
	const Py_ssize_t count = PyList_Size(slotted);
	answer same = 1;

	for (Py_ssize_t i = 0; same == 1 && i < count; i++)
		same = same_attribute(PyList_GetItem(slotted, i), PyList_GetItem(slots, i),
				      PyList_GetItem(values, i));
	return same;
}

/* Whether going through `part` gives exactly these items. */
static answer same_items(PyObject *part, PyObject *content, Py_ssize_t from, Py_ssize_t size)
{
	Py_ssize_t met = 0;
	bool same = true;
	PyObject *items, *item;

	if (!part)
		return -1;
	Py_INCREF(part);
	items = PyObject_GetIter(part);
	Py_DECREF(part);
	if (!items)
		return -1;
	while (same && (item = PyIter_Next(items))) {
		same = met < size && item == PyList_GetItem(content, from + met);
		met++;
		Py_DECREF(item);
	}
	Py_DECREF(items);
	if (PyErr_Occurred())
		return -1;
	return same && met == size;
}

static answer same_parts(PyObject *parts, PyObject *sizes, PyObject *content)
{
	const Py_ssize_t count = PyList_Size(parts);
	Py_ssize_t from = 0;

	for (Py_ssize_t i = 0; i < count; i++) {
		const Py_ssize_t size = PyLong_AsSsize_t(PyList_GetItem(sizes, i));
		const answer same =
		    size < 0 ? -1 : same_items(PyList_GetItem(parts, i), content, from, size);

		if (same != 1)
			return same;
		from += size;
	}
	return 1;
}

PyDoc_STRVAR(unchanged_doc,
	     "unchanged(seen: tuple[list[Any], ...]) -> bool\n\n"
	     "Whether objects are what they were when these lists were made, see `Reach`.");

static PyObject *unchanged(PyObject *module, PyObject *seen)
{
	PyObject *list[SEEN_LISTS];
	answer same;

	(void)module;
	for (int i = 0; i < SEEN_LISTS; i++) {
		list[i] = PyTuple_GetItem(seen, i);
		if (!list[i])
			return NULL;
		if (!PyList_Check(list[i])) {
			PyErr_SetString(PyExc_TypeError, "what was seen is in lists");
			return NULL;
		}
	}
	same = same_cells(list[SEEN_CELLS], list[SEEN_INSIDES]);
	if (same == 1)
		same = same_kinds(list[SEEN_OBJECTS], list[SEEN_KINDS]);
	if (same == 1)
		same = same_dicts(list[SEEN_HOLDERS], list[SEEN_DICTS]);
	if (same == 1)
		same = same_slots(list[SEEN_SLOTTED], list[SEEN_SLOTS], list[SEEN_VALUES]);
	if (same == 1)
		same = same_parts(list[SEEN_PARTS], list[SEEN_SIZES], list[SEEN_CONTENT]);
	if (!PyErr_Occurred())
		return PyBool_FromLong(same == 1);
	if (!PyErr_ExceptionMatches(PyExc_AttributeError) &&
	    !PyErr_ExceptionMatches(PyExc_ValueError))
		return NULL;
	/* An attribute, or what a variable was bound to, is not there any more. */
	PyErr_Clear();
	Py_RETURN_FALSE;
}

/* ---- frames -------------------------------------------------------------- */

/* Of a point, see `_Point`. */
enum point { POINT_CODE, POINT_NUMBER, POINT_OVER, POINT_NAMES };

/* (the address of a frame's code, where the frame says that it stands in it) */
static PyObject *key_of(PyObject *code, PyObject *frame)
{
	PyObject *last = PyObject_GetAttr(frame, f_lasti);
	PyObject *address = PyLong_FromVoidPtr(code);
	PyObject *key = last && address ? PyTuple_Pack(2, address, last) : NULL;

	Py_XDECREF(address);
	Py_XDECREF(last);
	return key;
}

/* What is known of where a frame stands, or what unknown(code, last) says. */
static PyObject *point_of(PyObject *points, PyObject *unknown, PyObject *code, PyObject *frame)
{
	PyObject *key = key_of(code, frame);
	PyObject *point = key ? PyDict_GetItemWithError(points, key) : NULL;

	if (point)
		Py_INCREF(point);
	else if (key && !PyErr_Occurred())
		point = PyObject_CallFunctionObjArgs(unknown, code, PyTuple_GetItem(key, 1), NULL);
	Py_XDECREF(key);
	return point;
}

PyDoc_STRVAR(
    stack_doc,
    "stack(frame, end: CodeType, points: dict, unknown) -> list | None\n\n"
    "The frames from this one up to the one that runs `end`: for each its point, and the frame.\n"
    "None where one of them hides something. unknown(code, last) is called for what is not in "
    "`points`.");

static PyObject *stack(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	PyObject *found, *frame, *end, *points, *unknown;

	(void)module;
	if (count != 4) {
		PyErr_SetString(PyExc_TypeError, "stack(frame, end, points, unknown)");
		return NULL;
	}
	frame = args[0];
	end = args[1];
	points = args[2];
	unknown = args[3];
	found = PyList_New(0);
	if (!found)
		return NULL;
	Py_INCREF(frame);
	while (frame != Py_None) {
		PyObject *code = PyObject_GetAttr(frame, f_code), *point, *over, *back;
		bool known, failing;

		if (!code)
			goto failed;
		if (code == end) {
			Py_DECREF(code);
			break;
		}
		point = point_of(points, unknown, code, frame);
		Py_DECREF(code);
		if (!point)
			goto failed;
		over = PyTuple_GetItem(point, POINT_OVER);
		known = over && over != Py_None;
		failing = !over ||
			  (known && (PyList_Append(found, point) || PyList_Append(found, frame)));
		Py_DECREF(point);
		if (failing)
			goto failed;
		if (!known) {
			Py_DECREF(frame);
			Py_DECREF(found);
			Py_RETURN_NONE;
		}
		back = PyObject_GetAttr(frame, f_back);
		if (!back)
			goto failed;
		Py_DECREF(frame);
		frame = back;
	}
	Py_DECREF(frame);
	return found;
failed:
	Py_DECREF(frame);
	Py_DECREF(found);
	return NULL;
}

PyDoc_STRVAR(place_doc,
	     "place(below: set[str], places: dict, unknown, frame) -> tuple[str, int]\n\n"
	     "Where the innermost frame stands that is of none of the files `below`: "
	     "unknown(frame) is called for\n"
	     "what is not in `places`, by the address of the code and what the frame says; "
	     "unknown(None) without one.");

static PyObject *place(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	PyObject *frame, *code = NULL, *found;

	(void)module;
	if (count != 4) {
		PyErr_SetString(PyExc_TypeError, "place(below, places, unknown, frame)");
		return NULL;
	}
	frame = args[3];
	Py_INCREF(frame);
	while (frame != Py_None) {
		PyObject *file = NULL, *back;
		answer is_below = -1;

		code = PyObject_GetAttr(frame, f_code);
		if (code)
			file = PyObject_GetAttr(code, co_filename);
		if (file)
			is_below = PySet_Contains(args[0], file);
		Py_XDECREF(file);
		if (is_below == 0)
			break;
		Py_XDECREF(code);
		back = is_below == 1 ? PyObject_GetAttr(frame, f_back) : NULL;
		Py_DECREF(frame);
		if (!back)
			return NULL;
		frame = back;
	}
	found = NULL;
	if (frame != Py_None) {
		PyObject *key = key_of(code, frame);

		Py_DECREF(code);
		found = key ? PyDict_GetItemWithError(args[1], key) : NULL;
		Py_XINCREF(found);
		Py_XDECREF(key);
	}
	if (!found && !PyErr_Occurred())
		found = PyObject_CallFunctionObjArgs(args[2], frame, NULL);
	Py_DECREF(frame);
	return found;
}

/* What a walk works with. */
struct walk {
	PyObject *kind;    /* its class, which marks what was met before */
	PyObject *found;   /* list */
	PyObject *met;     /* dict: number of each object, by its id */
	PyObject *add;     /* add(value) */
	PyObject *simple;  /* dict: of a class, whether a value tells its objects, else a name */
	PyObject *missing; /* stands for a variable that is not bound */
};

/* The attribute `name` of an object, or an empty text. */
static PyObject *name_of(PyObject *value)
{
	PyObject *name = PyObject_GetAttr(value, name_name);

	if (name || !PyErr_ExceptionMatches(PyExc_AttributeError))
		return name;
	PyErr_Clear();
	return PyUnicode_FromString("");
}

static int append_simple(const struct walk *walk, PyObject *value, bool plain)
{
	PyObject *name;
	int rc;

	if (PyList_Append(walk->found, (PyObject *)Py_TYPE(value)))
		return -1;
	if (plain)
		return PyList_Append(walk->found, value);
	name = name_of(value);
	if (!name)
		return -1;
	rc = PyList_Append(walk->found, name);
	Py_DECREF(name);
	return rc;
}

/* Appends what a variable is bound to. */
static int append(const struct walk *walk, PyObject *value)
{
	PyObject *how = PyDict_GetItemWithError(walk->simple, (PyObject *)Py_TYPE(value));
	PyObject *id, *before, *done;

	if (how)
		return append_simple(walk, value, how == Py_True);
	if (PyErr_Occurred())
		return -1;
	id = PyLong_FromVoidPtr(value);
	if (!id)
		return -1;
	before = PyDict_GetItemWithError(walk->met, id);
	Py_DECREF(id);
	if (before)
		return PyList_Append(walk->found, walk->kind) || PyList_Append(walk->found, before)
			   ? -1
			   : 0;
	if (PyErr_Occurred())
		return -1;
	done = PyObject_CallFunctionObjArgs(walk->add, value, NULL);
	if (!done)
		return -1;
	Py_DECREF(done);
	return 0;
}

/* A new reference to what a variable is bound to; NULL without an exception where it is not bound. */
static PyObject *variable(PyObject *variables, PyObject *name)
{
	PyObject *value;

	if (PyDict_Check(variables)) {
		/* Not PyObject_GetItem(): a class body's may make what is missing. */
		value = PyDict_GetItemWithError(variables, name);
		Py_XINCREF(value);
		return value;
	}
	value = PyObject_GetItem(variables, name);
	if (!value && PyErr_ExceptionMatches(PyExc_KeyError))
		PyErr_Clear();
	return value;
}

/* Whether the items of each list that loops go over tell the loops' positions. */
static answer all_distinct(PyObject *distinct, PyObject *variables, PyObject *over)
{
	const Py_ssize_t count = PyTuple_Size(over);

	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *items = variable(variables, PyTuple_GetItem(over, i)), *said;
		answer so;

		if (!items)
			return PyErr_Occurred() ? -1 : 0;
		said = PyObject_CallFunctionObjArgs(distinct, items, NULL);
		Py_DECREF(items);
		so = said ? PyObject_IsTrue(said) : -1;
		Py_XDECREF(said);
		if (so != 1)
			return so;
	}
	return count < 0 ? -1 : 1;
}

/* Appends the point of a frame and its variables; 0 if a loop's position cannot be told. */
static answer append_frame(const struct walk *walk, PyObject *distinct, PyObject *point,
			   PyObject *frame)
{
	PyObject *over = PyTuple_GetItem(point, POINT_OVER),
		 *names = PyTuple_GetItem(point, POINT_NAMES);
	PyObject *variables;
	Py_ssize_t count;
	answer so;

	if (!over || !names || PyList_Append(walk->found, PyTuple_GetItem(point, POINT_NUMBER)))
		return -1;
	count = PyTuple_Size(names);
	if (count <= 0)
		return count ? -1 : 1;
	variables = PyObject_GetAttr(frame, f_locals);
	if (!variables)
		return -1;
	so = all_distinct(distinct, variables, over);
	for (Py_ssize_t i = 0; so == 1 && i < count; i++) {
		PyObject *value = variable(variables, PyTuple_GetItem(names, i));

		if (value) {
			if (append(walk, value))
				so = -1;
			Py_DECREF(value);
		} else if (PyErr_Occurred() || PyList_Append(walk->found, walk->missing)) {
			so = -1;
		}
	}
	Py_DECREF(variables);
	return so;
}

PyDoc_STRVAR(
    add_frames_doc,
    "add_frames(kind, found, met, add, simple, missing, distinct, frames) -> bool\n\n"
    "Appends to `found` the points of `frames`, as `stack` gave them, and the variables that count "
    "there.\n"
    "False where distinct(list) says that a loop over that list does not tell its position.");

static PyObject *add_frames(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	struct walk walk;
	PyObject *frames;

	(void)module;
	if (count != 8 || !PyList_Check(args[1]) || !PyDict_Check(args[2]) ||
	    !PyDict_Check(args[4]) || !PyList_Check(args[7])) {
		PyErr_SetString(
		    PyExc_TypeError,
		    "add_frames(kind, found, met, add, simple, missing, distinct, frames)");
		return NULL;
	}
	walk = (struct walk){
	    .kind = args[0],
	    .found = args[1],
	    .met = args[2],
	    .add = args[3],
	    .simple = args[4],
	    .missing = args[5],
	};
	frames = args[7];
	for (Py_ssize_t i = 0; i + 1 < PyList_Size(frames); i += 2) {
		PyObject *point = PyList_GetItem(frames, i), *frame = PyList_GetItem(frames, i + 1);
		answer so;

		Py_INCREF(point);
		Py_INCREF(frame);
		so = append_frame(&walk, args[6], point, frame);
		Py_DECREF(frame);
		Py_DECREF(point);
		if (so < 0)
			return NULL;
		if (so == 0)
			Py_RETURN_FALSE;
	}
	Py_RETURN_TRUE;
}

static PyMethodDef methods[] = {
    {"unchanged", unchanged, METH_O, unchanged_doc},
    {"stack", (PyCFunction)(void (*)(void))stack, METH_FASTCALL, stack_doc},
    {"place", (PyCFunction)(void (*)(void))place, METH_FASTCALL, place_doc},
    {"add_frames", (PyCFunction)(void (*)(void))add_frames, METH_FASTCALL, add_frames_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "balloonvq.explore._local_state",
    .m_doc = "The inner loops of balloonvq.explore.local_state.",
    .m_size = -1,
    .m_methods = methods,
};

static bool intern(PyObject **name, const char *text)
{
	*name = PyUnicode_InternFromString(text);
	return *name;
}

PyMODINIT_FUNC PyInit__local_state(void)
{
	if (!intern(&cell_contents, "cell_contents") || !intern(&co_filename, "co_filename") ||
	    !intern(&dict_name, "__dict__") || !intern(&f_back, "f_back") ||
	    !intern(&f_code, "f_code") || !intern(&f_lasti, "f_lasti") ||
	    !intern(&f_locals, "f_locals") || !intern(&name_name, "name"))
		return NULL;
	return PyModule_Create(&definition);
}
