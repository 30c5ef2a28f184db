/* Keys to row numbers and back: the Python class KeyTable, used by lstmstream/serve/key_table.py. Included by codec.c.
 *
 * An extendible hash table (Fagin et al., 1979): the first bits of a key's hash choose an entry of the directory, which
 * points to a segment; a segment that is full is split in two. So the table grows by some kilobytes at a time, and
 * never moves all that it has. A segment is a small hash table with linear probing. The keys themselves are in cells
 * by row number; those of up to 15 bytes need no memory beside their cell.
 *
 * The hash is Python's own of bytes, SipHash with a secret of the process, times a secret of the table. So nobody who
 * sends keys can choose them to fall into one place, not even where PYTHONHASHSEED is set.
 */

#define SEGMENT_SLOTS 1024 /* a power of two */
#define SEGMENT_FULL 820   /* keys; more make the probes long */
#define LAST_DEPTH 22      /* bits of the hash for the directory; the other 10 choose the slot */
#define NO_ROW UINT32_MAX
#define SIDE_BY_SIDE 32 /* keys that are looked up, so that the memory they need is fetched at once */
#define CHUNK_BYTES (2 << 20) /* a huge page, without which each key of millions costs a walk through page tables */
#define CHUNK_CELLS (CHUNK_BYTES / 16)
#define CHUNK_SEGMENTS ((int)(CHUNK_BYTES / sizeof(Segment)))

#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(at) __builtin_prefetch(at)
#else
#define PREFETCH(at) ((void)0)
#endif

typedef struct {
    uint32_t hash, row; /* NO_ROW: an empty slot */
} Slot;

typedef struct {
    int depth; /* how many first bits of the hash all its keys share */
    int count;
    Slot slots[SEGMENT_SLOTS];
} Segment;

enum { SHORT_KEY = 15, LONG_KEY, NULL_KEY, FREE_CELL };
typedef union {
    struct {
        char text[SHORT_KEY];
        unsigned char kind; /* the length of a short key */
    } of_short;
    struct {
        char *text;
        uint32_t length;
        char unused[11 - sizeof(char *)];
        unsigned char kind;
    } of_long;
} Cell;
_Static_assert(sizeof(Cell) == 16, "both forms have their kind in the last byte");

typedef struct {
    PyObject_HEAD
    Segment **directory; /* [1 << depth] */
    int depth;
    void **chunks; /* of segments */
    Segment *next_segment; /* that nobody has, of the newest chunk */
    int segments_left, n_chunks;
    Cell **cells; /* chunks of them; only the first one grows, up to its full size */
    Py_ssize_t count, segments, n_cells, room, long_bytes;
    uint64_t secret;
} KeyTable;

typedef struct { /* a key that is looked for */
    const char *text;
    Py_ssize_t length; /* -1 is the null key */
    uint32_t hash;
} Wanted;

static int want_key(const KeyTable *self, PyObject *key, Wanted *wanted)
{
    Py_hash_t hash = 1;
    if (key == Py_None) {
        wanted->length = -1;
    } else if (PyBytes_CheckExact(key)) { /* another class could bring a hash of its own */
        wanted->text = PyBytes_AsString(key);
        wanted->length = PyBytes_Size(key);
        hash = PyObject_Hash(key);
    } else {
        PyErr_SetString(PyExc_TypeError, "a key is bytes or None");
        return -1;
    }
    wanted->hash = (uint32_t)((uint64_t)hash * self->secret >> 32);
    return 0;
}

static inline int is_key(const Cell *cell, const Wanted *wanted)
{
    int kind = cell->of_short.kind;
    if (kind == NULL_KEY || wanted->length < 0) return kind == NULL_KEY && wanted->length < 0;
    if (kind <= SHORT_KEY)
        return kind == wanted->length && memcmp(cell->of_short.text, wanted->text, (size_t)kind) == 0;
    return kind == LONG_KEY && cell->of_long.length == wanted->length
           && memcmp(cell->of_long.text, wanted->text, (size_t)wanted->length) == 0;
}

static inline Cell *cell_at(const KeyTable *self, uint32_t row)
{
    return &self->cells[row / CHUNK_CELLS][row % CHUNK_CELLS];
}

static inline size_t directory_entry(const KeyTable *self, uint32_t hash)
{
    return (size_t)((uint64_t)hash << self->depth >> 32);
}

static inline Segment *segment_of(const KeyTable *self, uint32_t hash)
{
    return self->directory[directory_entry(self, hash)];
}

/* From `at` on, the first slot with this hash or without a key: a segment is never full. */
static inline uint32_t probe(const Segment *segment, uint32_t hash, uint32_t at)
{
    for (;; at++) {
        at &= SEGMENT_SLOTS - 1;
        if (segment->slots[at].row == NO_ROW || segment->slots[at].hash == hash) return at;
    }
}

/* The slot of the key, or the empty one where it would be. */
static uint32_t find_slot(const KeyTable *self, const Segment *segment, const Wanted *wanted, uint32_t at)
{
    for (;; at++) {
        at = probe(segment, wanted->hash, at);
        if (segment->slots[at].row == NO_ROW || is_key(cell_at(self, segment->slots[at].row), wanted)) return at;
    }
}

/* Memory for `free`, all of a huge page where the system has those. */
static void *new_chunk(void)
{
    void *chunk = aligned_alloc(CHUNK_BYTES, CHUNK_BYTES);
    if (chunk == NULL) PyErr_NoMemory();
#ifdef MADV_HUGEPAGE
    else madvise(chunk, CHUNK_BYTES, MADV_HUGEPAGE);
#endif
    return chunk;
}

/* As many as there are, up to a chunk of the full size. */
static int make_segments(KeyTable *self)
{
    int number = self->segments < CHUNK_SEGMENTS ? (int)self->segments + (self->segments == 0) : CHUNK_SEGMENTS;
    void **larger = PyMem_Realloc(self->chunks, ((size_t)self->n_chunks + 1) * sizeof(void *));
    if (larger == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->chunks = larger;
    void *chunk = number == CHUNK_SEGMENTS ? new_chunk() : malloc((size_t)number * sizeof(Segment));
    if (chunk == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->chunks[self->n_chunks++] = self->next_segment = chunk;
    self->segments_left = number;
    return 0;
}

static Segment *new_segment(KeyTable *self, int depth)
{
    if (self->segments_left == 0 && make_segments(self) < 0) return NULL;
    Segment *segment = self->next_segment++;
    self->segments_left--;
    self->segments++;
    segment->depth = depth;
    segment->count = 0;
    memset(segment->slots, 0xFF, sizeof segment->slots);
    return segment;
}

static void put_slot(Segment *segment, Slot slot)
{
    uint32_t at = slot.hash;
    while (segment->slots[at &= SEGMENT_SLOTS - 1].row != NO_ROW) at++;
    segment->slots[at] = slot;
    segment->count++;
}

/* In two, by the next bit of the hashes. Only the segment's own slots are moved. */
static int split_segment(KeyTable *self, uint32_t hash)
{
    Segment *segment = segment_of(self, hash);
    if (segment->depth == LAST_DEPTH) {
        PyErr_SetString(PyExc_OverflowError, "too many keys");
        return -1;
    }
    if (segment->depth == self->depth) {
        size_t size = (size_t)1 << self->depth;
        Segment **larger = PyMem_Realloc(self->directory, 2 * size * sizeof(Segment *));
        if (larger == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        for (size_t i = size; i-- > 0;) larger[2 * i] = larger[2 * i + 1] = larger[i];
        self->directory = larger;
        self->depth++;
    }
    int depth = segment->depth + 1;
    Segment *upper = new_segment(self, depth);
    if (upper == NULL) return -1;
    Slot slots[SEGMENT_SLOTS];
    memcpy(slots, segment->slots, sizeof slots);
    memset(segment->slots, 0xFF, sizeof segment->slots);
    segment->count = 0;
    segment->depth = depth;
    for (int i = 0; i < SEGMENT_SLOTS; i++)
        if (slots[i].row != NO_ROW) put_slot(slots[i].hash >> (32 - depth) & 1 ? upper : segment, slots[i]);
    size_t entries = (size_t)1 << (self->depth - depth); /* of each of the two */
    size_t first = directory_entry(self, hash) & ~(2 * entries - 1);
    for (size_t i = first + entries; i < first + 2 * entries; i++) self->directory[i] = upper;
    return 0;
}

/* Room for more rows than there is. */
static int grow_cells(KeyTable *self)
{
    if (self->room < CHUNK_CELLS) {
        Py_ssize_t room = self->room == 0 ? 16 : 2 * self->room;
        Cell *larger = realloc(self->cells[0], (size_t)room * sizeof(Cell));
        if (larger == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->cells[0] = larger;
        self->room = room;
        return 0;
    }
    Py_ssize_t n_chunks = self->room / CHUNK_CELLS;
    Cell **larger = PyMem_Realloc(self->cells, ((size_t)n_chunks + 1) * sizeof(Cell *));
    if (larger == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->cells = larger;
    if ((self->cells[n_chunks] = new_chunk()) == NULL) return -1;
    self->room += CHUNK_CELLS;
    return 0;
}

static int make_cells(KeyTable *self, Py_ssize_t row)
{
    while (row >= self->room)
        if (grow_cells(self) < 0) return -1;
    for (; self->n_cells <= row; self->n_cells++) cell_at(self, (uint32_t)self->n_cells)->of_short.kind = FREE_CELL;
    return 0;
}

static int fill_cell(KeyTable *self, Cell *cell, const Wanted *wanted)
{
    if (wanted->length < 0) {
        cell->of_short.kind = NULL_KEY;
    } else if (wanted->length <= SHORT_KEY) {
        memcpy(cell->of_short.text, wanted->text, (size_t)wanted->length);
        cell->of_short.kind = (unsigned char)wanted->length;
    } else {
        char *text = PyMem_Malloc((size_t)wanted->length);
        if (text == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(text, wanted->text, (size_t)wanted->length);
        cell->of_long.text = text;
        cell->of_long.length = (uint32_t)wanted->length;
        cell->of_long.kind = LONG_KEY;
        self->long_bytes += wanted->length;
    }
    return 0;
}

static void free_cell(KeyTable *self, Cell *cell)
{
    if (cell->of_short.kind == LONG_KEY) {
        self->long_bytes -= cell->of_long.length;
        PyMem_Free(cell->of_long.text);
    }
    cell->of_short.kind = FREE_CELL;
}

static int insert_key(KeyTable *self, const Wanted *wanted, int64_t row)
{
    int taken = row >= 0 && row < self->n_cells && cell_at(self, (uint32_t)row)->of_short.kind != FREE_CELL;
    if (row < 0 || row >= NO_ROW || taken || wanted->length > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a row number is taken or too large, or a key is too long");
        return -1;
    }
    Segment *segment = segment_of(self, wanted->hash);
    if (segment->slots[find_slot(self, segment, wanted, wanted->hash)].row != NO_ROW) {
        PyErr_SetString(PyExc_ValueError, "a key has a row already");
        return -1;
    }
    while ((segment = segment_of(self, wanted->hash))->count >= SEGMENT_FULL)
        if (split_segment(self, wanted->hash) < 0) return -1;
    if (make_cells(self, (Py_ssize_t)row) < 0 || fill_cell(self, cell_at(self, (uint32_t)row), wanted) < 0) return -1;
    put_slot(segment, (Slot){wanted->hash, (uint32_t)row});
    self->count++;
    return 0;
}

/* The keys after it that were pushed away from their places move up. */
static void clear_slot(Segment *segment, uint32_t hole)
{
    uint32_t mask = SEGMENT_SLOTS - 1;
    for (uint32_t at = (hole + 1) & mask; segment->slots[at].row != NO_ROW; at = (at + 1) & mask) {
        if (((at - segment->slots[at].hash) & mask) >= ((at - hole) & mask)) {
            segment->slots[hole] = segment->slots[at];
            hole = at;
        }
    }
    segment->slots[hole].row = NO_ROW;
    segment->count--;
}

static PyObject *KeyTable_find(PyObject *object, PyObject *key)
{
    KeyTable *self = (KeyTable *)object;
    Wanted wanted;
    if (want_key(self, key, &wanted) < 0) return NULL;
    const Segment *segment = segment_of(self, wanted.hash);
    uint32_t row = segment->slots[find_slot(self, segment, &wanted, wanted.hash)].row;
    return PyLong_FromLongLong(row == NO_ROW ? -1 : (long long)row);
}

/* Up to SIDE_BY_SIDE keys from `start`: all slots are fetched first, then all cells. How many are missing; -1: error */
static Py_ssize_t find_block(const KeyTable *self, PyObject *keys, Py_ssize_t start, Py_ssize_t size, int64_t *rows)
{
    Wanted wanted[SIDE_BY_SIDE];
    const Segment *segments[SIDE_BY_SIDE];
    uint32_t slots[SIDE_BY_SIDE];
    Py_ssize_t missing = 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *key = PyList_GetItem(keys, start + i);
        if (key == NULL || want_key(self, key, &wanted[i]) < 0) return -1;
        segments[i] = segment_of(self, wanted[i].hash);
        PREFETCH(&segments[i]->slots[wanted[i].hash & (SEGMENT_SLOTS - 1)]);
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        slots[i] = probe(segments[i], wanted[i].hash, wanted[i].hash);
        uint32_t row = segments[i]->slots[slots[i]].row;
        if (row != NO_ROW) PREFETCH(cell_at(self, row));
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        uint32_t row = segments[i]->slots[find_slot(self, segments[i], &wanted[i], slots[i])].row;
        rows[start + i] = row == NO_ROW ? -1 : (int64_t)row;
        missing += row == NO_ROW;
    }
    return missing;
}

/* A list, and an array of int64 with as many entries. */
static int open_rows(PyObject *args, PyObject **keys, Py_buffer *rows, int flags)
{
    PyObject *array;
    if (!PyArg_ParseTuple(args, "OO", keys, &array)) return -1;
    if (!PyList_Check(*keys)) {
        PyErr_SetString(PyExc_TypeError, "keys are a list");
        return -1;
    }
    if (PyObject_GetBuffer(array, rows, flags | PyBUF_C_CONTIGUOUS) < 0) return -1;
    if (rows->len == PyList_Size(*keys) * 8) return 0;
    PyBuffer_Release(rows);
    PyErr_SetString(PyExc_ValueError, "there are not as many rows as keys");
    return -1;
}

static PyObject *KeyTable_find_all(PyObject *self, PyObject *args)
{
    PyObject *keys;
    Py_buffer rows;
    if (open_rows(args, &keys, &rows, PyBUF_WRITABLE) < 0) return NULL;
    Py_ssize_t count = PyList_Size(keys), missing = 0, found = 0;
    for (Py_ssize_t start = 0; start < count && found >= 0; start += SIDE_BY_SIDE) { /* calls no Python code */
        Py_ssize_t size = count - start < SIDE_BY_SIDE ? count - start : SIDE_BY_SIDE;
        found = find_block((KeyTable *)self, keys, start, size, rows.buf);
        missing += found;
    }
    PyBuffer_Release(&rows);
    return found < 0 ? NULL : PyLong_FromSsize_t(missing);
}

static PyObject *KeyTable_insert_all(PyObject *self, PyObject *args)
{
    PyObject *keys;
    Py_buffer rows;
    if (open_rows(args, &keys, &rows, PyBUF_SIMPLE) < 0) return NULL;
    int failed = 0;
    Py_ssize_t count = PyList_Size(keys);
    for (Py_ssize_t i = 0; i < count && !failed; i++) { /* calls no Python code */
        Wanted wanted;
        PyObject *key = PyList_GetItem(keys, i);
        failed = key == NULL || want_key((KeyTable *)self, key, &wanted) < 0
                 || insert_key((KeyTable *)self, &wanted, ((int64_t *)rows.buf)[i]) < 0;
    }
    PyBuffer_Release(&rows);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyObject *KeyTable_remove(PyObject *object, PyObject *key)
{
    KeyTable *self = (KeyTable *)object;
    Wanted wanted;
    if (want_key(self, key, &wanted) < 0) return NULL;
    Segment *segment = segment_of(self, wanted.hash);
    uint32_t slot = find_slot(self, segment, &wanted, wanted.hash), row = segment->slots[slot].row;
    if (row == NO_ROW) {
        PyErr_SetObject(PyExc_KeyError, key);
        return NULL;
    }
    clear_slot(segment, slot);
    free_cell(self, cell_at(self, row));
    self->count--;
    return PyLong_FromUnsignedLong(row);
}

static PyObject *key_at(const KeyTable *self, int64_t row)
{
    if (row < 0 || row >= self->n_cells) {
        PyErr_SetString(PyExc_IndexError, "no key has had this row");
        return NULL;
    }
    const Cell *cell = cell_at(self, (uint32_t)row);
    int kind = cell->of_short.kind;
    if (kind == NULL_KEY || kind == FREE_CELL) return Py_NewRef(Py_None);
    if (kind <= SHORT_KEY) return PyBytes_FromStringAndSize(cell->of_short.text, kind);
    return PyBytes_FromStringAndSize(cell->of_long.text, (Py_ssize_t)cell->of_long.length);
}

static PyObject *KeyTable_keys_at(PyObject *self, PyObject *array)
{
    Py_buffer rows;
    if (PyObject_GetBuffer(array, &rows, PyBUF_C_CONTIGUOUS) < 0) return NULL;
    PyObject *keys = PyList_New(rows.len / 8);
    for (Py_ssize_t i = 0; keys != NULL && i < rows.len / 8; i++) {
        PyObject *key = key_at((KeyTable *)self, ((int64_t *)rows.buf)[i]);
        if (key == NULL || PyList_SetItem(keys, i, key) < 0) Py_CLEAR(keys);
    }
    PyBuffer_Release(&rows);
    return keys;
}

static PyObject *KeyTable_memory(PyObject *object, PyObject *Py_UNUSED(none))
{
    const KeyTable *self = (KeyTable *)object;
    Py_ssize_t directory = ((Py_ssize_t)1 << self->depth) * (Py_ssize_t)sizeof(Segment *);
    Py_ssize_t cells = self->n_cells * (Py_ssize_t)sizeof(Cell), slots = self->segments * (Py_ssize_t)sizeof(Segment);
    return PyLong_FromSsize_t(directory + cells + slots + self->long_bytes);
}

static Py_ssize_t KeyTable_length(PyObject *self) { return ((KeyTable *)self)->count; }

static PyObject *KeyTable_new(PyTypeObject *type, PyObject *args, PyObject *options)
{
    unsigned long long secret;
    if (options != NULL && PyDict_Size(options)) {
        PyErr_SetString(PyExc_TypeError, "KeyTable takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "K", &secret)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    KeyTable *self = (KeyTable *)allocate(type, 0); /* all zeros */
    if (self == NULL) return NULL;
    self->secret = secret | 1; /* by an odd factor, no two hashes become the same */
    self->directory = PyMem_Calloc(1, sizeof(Segment *));
    self->cells = PyMem_Calloc(1, sizeof(Cell *));
    int failed = self->directory == NULL || self->cells == NULL;
    if (failed) PyErr_NoMemory();
    if (failed || (self->directory[0] = new_segment(self, 0)) == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void KeyTable_dealloc(PyObject *object)
{
    KeyTable *self = (KeyTable *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (Py_ssize_t row = 0; row < self->n_cells; row++) free_cell(self, cell_at(self, (uint32_t)row));
    for (int i = 0; i < self->n_chunks; i++) free(self->chunks[i]);
    for (Py_ssize_t first = 0; first < self->room; first += CHUNK_CELLS) free(self->cells[first / CHUNK_CELLS]);
    PyMem_Free(self->chunks);
    PyMem_Free(self->directory);
    PyMem_Free(self->cells);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef key_table_methods[] = {
    {"find", KeyTable_find, METH_O, "find(key) -> row, or -1"},
    {"find_all", KeyTable_find_all, METH_VARARGS,
     "find_all(keys, rows) -> how many are missing\n\nFills the array int64 [N]; -1 where a key is missing."},
    {"insert_all", KeyTable_insert_all, METH_VARARGS,
     "insert_all(keys, rows)\n\nKeys and rows that are not there yet."},
    {"remove", KeyTable_remove, METH_O, "remove(key) -> the row that it had"},
    {"keys_at", KeyTable_keys_at, METH_O, "keys_at(rows) -> list of keys\n\nrows: int64 [N]"},
    {"memory", KeyTable_memory, METH_NOARGS, "memory() -> bytes that keys and table use"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot key_table_slots[] = {
    {Py_tp_new, KeyTable_new},
    {Py_tp_dealloc, KeyTable_dealloc},
    {Py_tp_methods, key_table_methods},
    {Py_mp_length, KeyTable_length},
    {0, NULL},
};

static PyType_Spec key_table_spec = {
    .name = "lstmstream._codec.KeyTable",
    .basicsize = sizeof(KeyTable),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = key_table_slots,
};
