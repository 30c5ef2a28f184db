/* The optional compiled codec (lstmstream/codec.py): JSON events to columns, columns to predictions,
 * the records of Kafka's log, and a table of keys.
 *
 * It answers only where the answer is plain, and else declines an event, or all: Python code, which is the
 * definition, then reads the same bytes again. So nothing is refused here, and no message is made here.
 *
 * Bounds: a bytes object of Python ends with a NUL that does not count in its length. NUL is in no token of JSON, so
 * whatever reads byte by byte stops there; whatever reads more at once compares with `end` first.
 */

/* One binary for Python 3.11 and all later ones, whichever of them has the headers; so no format has a `#`, which headers
 * of 3.13 take for lengths of another size in 3.11. */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if FLT_EVAL_METHOD != 0
#error "doubles are not computed as doubles here, so numbers would be rounded in another way than in Python"
#endif

#define INTERFACE 6 /* as lstmstream/codec.py has it: another one is not used */

#include "json.h"
#include "lock.h"
#include "values.h"

#include "members.h"

#include "decoder.h"
#include "key_table.h"
#include "records.h"
#include "rows.h"
#include "states.h"

static int add_class(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL) return -1;
    int failed = PyModule_AddObjectRef(module, name, type);
    Py_DECREF(type);
    return failed;
}

static int fill_module(PyObject *module)
{
    fill_crc_tables();
    if (add_class(module, "Decoder", &decoder_spec) < 0 || add_class(module, "KeyTable", &key_table_spec) < 0) return -1;
    return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static PyMethodDef module_functions[] = {
    {"read_members", read_members, METH_VARARGS,
     "read_members(values, names) -> list of columns or None\n\n"
     "values: JSON objects that are known to be sound. A column is the list of a member's texts: b'' where it is absent,\n"
     "None where it would be written in another way."},
    {"read_records", read_records, METH_VARARGS,
     "read_records(body, count, offset_deltas, timestamp_deltas) -> (keys, values, headers) or None\n\n"
     "Fills the arrays int64 [N]. headers: (row, begin, end, count) of each record that has some."},
    {"write_records", write_records, METH_VARARGS,
     "write_records(timestamp_deltas, keys, values, headers) -> bytes or None\n\n"
     "Takes lists. headers: those of each record as bytes, with their count; None is none."},
    {"write_rows", write_rows, METH_VARARGS,
     "write_rows(columns, suffix, count) -> list of bytes or None\n\n"
     "columns: a tuple of (kind, prefix, list of bytes or array), see lstmstream/serve/rows.py."},
    {"write_states", write_states, METH_VARARGS,
     "write_states(keys, prefix, null_key, records, record_bytes) -> (record keys, values)\n\n"
     "records: an array of as many records, in each of which the last four bytes are left to the checksum."},
    {"read_states", read_states, METH_VARARGS,
     "read_states(record_keys, values, records, record_bytes) -> bool\n\n"
     "Copies the values into the array; False where one has another size, or its checksum is wrong."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "lstmstream._codec",
    .m_methods = module_functions,
    .m_size = 0,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__codec(void) { return PyModuleDef_Init(&module_definition); }
