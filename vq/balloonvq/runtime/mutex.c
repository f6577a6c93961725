/* SPDX-License-Identifier: MIT */
/*
 * The inner part of `ThreadMutex`: taking a mutex that is free, and releasing one that nobody waits for. A driver does
 * that several times for each request, and in Python it took longer than what the mutex guards.
 * Here and not in csrc, since it is Python's tasks and frames that are noted; only what the stable ABI has is used.
 *
 * Everything else is the subclass's, in Python:
 *
 *   lock     free?    take it, note owner and place            else  _lock_slow(task, frame)
 *   unlock   mine?    release it; somebody waits? _hand_over() else  _not_mine(task)
 *   both     a thread that is no task                          _no_task()
 *
 * The interpreter's lock is held between the look at `taken` and the store to it, and nothing in between runs Python
 * code: that is what makes taking atomic.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <structmember.h>

static PyObject *f_lasti, *held, *hand_over, *lock_slow, *no_task, *not_mine;

typedef struct {
	PyObject_HEAD PyObject *current; /* called without arguments: the calling task or None */
	PyObject *owner;                 /* the task that has it, or None */
	PyObject *waiters;               /* the tasks that want it */
	PyObject *code;                  /* where the owner took it: a code object or None, */
	PyObject *lasti;                 /* and the offset of an instruction */
	bool taken;                      /* owner follows a little later */
} Mutex;

static void set(PyObject **field, PyObject *value)
{
	PyObject *before = *field;

	*field = value;
	Py_XDECREF(before);
}

/* Notes the owner of a mutex that it has taken. frame is where. */
static bool own(Mutex *self, PyObject *task, PyObject *frame)
{
	PyObject *list = PyObject_GetAttr(task, held);
	PyObject *lasti = PyObject_GetAttr(frame, f_lasti);
	const bool done = list && lasti && PyList_Append(list, (PyObject *)self) == 0;

	Py_XDECREF(list);
	if (!done) {
		Py_XDECREF(lasti);
		self->taken = false;
		return false;
	}
	set(&self->owner, Py_NewRef(task));
	set(&self->code, (PyObject *)PyFrame_GetCode((PyFrameObject *)frame));
	set(&self->lasti, lasti);
	return true;
}

/* Takes it out of the list of what the task holds, where it mostly is the last. */
static bool disown(Mutex *self, PyObject *task)
{
	PyObject *list = PyObject_GetAttr(task, held);
	Py_ssize_t i;
	bool done;

	if (!list)
		return false;
	if (!PyList_Check(list)) {
		Py_DECREF(list);
		PyErr_SetString(PyExc_TypeError, "what a task holds is a list");
		return false;
	}
	for (i = PyList_Size(list) - 1; i >= 0; i--) {
		if (PyList_GetItem(list, i) == (PyObject *)self)
			break;
	}
	done = i >= 0 && PyList_SetSlice(list, i, i + 1, NULL) == 0;
	if (i < 0)
		PyErr_SetString(PyExc_ValueError, "an owner does not hold its mutex");
	Py_DECREF(list);
	return done;
}

/* The calling task, or NULL with an exception. */
static PyObject *calling(Mutex *self)
{
	PyObject *task = PyObject_CallNoArgs(self->current);

	if (task == Py_None) {
		Py_DECREF(task);
		task = PyObject_CallMethodObjArgs((PyObject *)self, no_task, NULL);
	}
	return task;
}

static PyObject *lock(PyObject *object, PyObject *unused)
{
	Mutex *self = (Mutex *)object;
	PyObject *frame = (PyObject *)PyEval_GetFrame();
	PyObject *task = calling(self);
	PyObject *result;

	(void)unused;
	if (!task)
		return NULL;
	if (!frame) {
		Py_DECREF(task);
		PyErr_SetString(PyExc_RuntimeError, "a mutex is taken by Python code");
		return NULL;
	}
	if (self->taken) {
		result = PyObject_CallMethodObjArgs(object, lock_slow, task, frame, NULL);
	} else {
		self->taken = true;
		result = own(self, task, frame) ? Py_NewRef(Py_None) : NULL;
	}
	Py_DECREF(task);
	return result;
}

static PyObject *unlock(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
	Mutex *self = (Mutex *)object;
	PyObject *task = calling(self);
	PyObject *result = NULL;
	Py_ssize_t waiting;

	(void)args;
	(void)count;
	if (!task)
		return NULL;
	if (self->owner != task) {
		result = PyObject_CallMethodObjArgs(object, not_mine, task, NULL);
	} else if (disown(self, task)) {
		set(&self->owner, Py_NewRef(Py_None));
		self->taken = false;
		waiting = PyObject_Size(self->waiters);
		if (waiting > 0)
			result = PyObject_CallMethodObjArgs(object, hand_over, NULL);
		else if (waiting == 0)
			result = Py_NewRef(Py_None);
	}
	Py_DECREF(task);
	return result;
}

static PyObject *take(PyObject *object, PyObject *unused)
{
	Mutex *self = (Mutex *)object;
	const bool was = self->taken;

	(void)unused;
	self->taken = true;
	return PyBool_FromLong(!was);
}

static PyObject *own_it(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "_own(task, frame)");
		return NULL;
	}
	return own((Mutex *)object, args[0], args[1]) ? Py_NewRef(Py_None) : NULL;
}

static int init(PyObject *object, PyObject *args, PyObject *keywords)
{
	Mutex *self = (Mutex *)object;
	PyObject *current, *waiters;

	if (keywords && PyDict_Size(keywords) > 0) {
		PyErr_SetString(PyExc_TypeError, "Mutex(current, waiters)");
		return -1;
	}
	if (!PyArg_ParseTuple(args, "OO", &current, &waiters))
		return -1;
	set(&self->current, Py_NewRef(current));
	set(&self->waiters, Py_NewRef(waiters));
	set(&self->owner, Py_NewRef(Py_None));
	set(&self->code, Py_NewRef(Py_None));
	set(&self->lasti, PyLong_FromLong(0));
	return self->lasti ? 0 : -1;
}

static int traverse(PyObject *object, visitproc visit, void *arg)
{
	Mutex *self = (Mutex *)object;

	Py_VISIT(Py_TYPE(object));
	Py_VISIT(self->current);
	Py_VISIT(self->owner);
	Py_VISIT(self->waiters);
	Py_VISIT(self->code);
	Py_VISIT(self->lasti);
	return 0;
}

static int clear(PyObject *object)
{
	Mutex *self = (Mutex *)object;

	Py_CLEAR(self->current);
	Py_CLEAR(self->owner);
	Py_CLEAR(self->waiters);
	Py_CLEAR(self->code);
	Py_CLEAR(self->lasti);
	return 0;
}

static void dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	PyObject_GC_UnTrack(object);
	clear(object);
	release(object);
	Py_DECREF(type);
}

PyDoc_STRVAR(lock_doc, "Takes the mutex, sleeping while another task holds it.");
PyDoc_STRVAR(
    unlock_doc,
    "Releases the mutex; only its owner may. Arguments are those of __exit__, and not looked at.");

static PyMethodDef methods[] = {
    {"lock", lock, METH_NOARGS, lock_doc},
    {"__enter__", lock, METH_NOARGS, lock_doc},
    {"unlock", (PyCFunction)(void (*)(void))unlock, METH_FASTCALL, unlock_doc},
    {"__exit__", (PyCFunction)(void (*)(void))unlock, METH_FASTCALL, unlock_doc},
    {"_take", take, METH_NOARGS, "Takes the mutex, if it is free; whether it was."},
    {"_own", (PyCFunction)(void (*)(void))own_it, METH_FASTCALL,
     "Notes the task that has taken it, and the frame in which it did."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"_owner", T_OBJECT, offsetof(Mutex, owner), 0, NULL},
    {"_waiters", T_OBJECT, offsetof(Mutex, waiters), READONLY, NULL},
    {"_code", T_OBJECT, offsetof(Mutex, code), 0, NULL},
    {"_lasti", T_OBJECT, offsetof(Mutex, lasti), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A mutex as far as it is free, or nobody waits for it.\n\n"
		"Args:\n"
		"    current: called without arguments: the calling task, or None.\n"
		"    waiters: tasks that want it; kept by the subclass.\n"},
    {Py_tp_init, init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "balloonvq.runtime._mutex.Mutex",
    .basicsize = sizeof(Mutex),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "balloonvq.runtime._mutex",
    .m_doc = "The inner part of balloonvq.runtime.threads.ThreadMutex.",
    .m_size = -1,
};

static bool intern(PyObject **name, const char *text)
{
	*name = PyUnicode_InternFromString(text);
	return *name;
}

PyMODINIT_FUNC PyInit__mutex(void)
{
	PyObject *module, *type;

	if (!intern(&f_lasti, "f_lasti") || !intern(&held, "held") ||
	    !intern(&hand_over, "_hand_over") || !intern(&lock_slow, "_lock_slow") ||
	    !intern(&no_task, "_no_task") || !intern(&not_mine, "_not_mine"))
		return NULL;
	module = PyModule_Create(&definition);
	type = PyType_FromSpec(&spec);
	if (!module || !type || PyModule_AddObjectRef(module, "Mutex", type)) {
		Py_XDECREF(module);
		Py_XDECREF(type);
		return NULL;
	}
	Py_DECREF(type);
	return module;
}
