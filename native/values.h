/* What the values of fields mean: numbers to float32, times to milliseconds. Included by codec.c.
 *
 * The definitions are lstmstream/formats/values.py and timestamps.py; what is not usual is left to them.
 */

static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}; /* all exact */

/* The nearest double, as Python has it; -1 where that fails. */
static int nearest_double(const Number *number, double *found, Lock *lock)
{
    char *stop;
    take_lock(lock);
    *found = PyOS_string_to_double(number->start, &stop, NULL);
    int failed = PyErr_Occurred() != NULL;
    if (failed) PyErr_Clear();
    let_lock_go(lock);
    return failed || stop != number->end ? -1 : 0;
}

/* The nearest double, rounded to float32. -1 where it is not finite. */
static int to_float(const Number *number, float *found, Lock *lock)
{
    double value = (double)number->digits;
    int exponent = number->exponent, sure = 0;
    if (number->digits == 0) {
        *found = number->negative && !number->whole ? -0.0f : 0.0f; /* the integer -0 is 0 */
        return 0;
    }
    if (!number->cut && exponent == 0) {
        sure = 1; /* rounded once */
    } else if (exponent >= -44 && exponent <= 22) {
        /* Exact digits and an exact power: rounded once. */
        sure = !number->cut && number->digits <= (uint64_t)1 << 53 && exponent >= -22;
        if (exponent >= 0) value *= POWERS[exponent];
        else if (exponent >= -22) value /= POWERS[-exponent];
        else value = value / 1e22 / POWERS[-exponent - 22];
        if (!sure) {
            /* Digits that are cut off are less than 2**-59 of the value, and each of up to three roundings is at most
             * 2**-53, as is that of the nearest double: which lies between these two, and where they are one in
             * float32, so is all between them. */
            float low = (float)(value * (1 - 0x1p-50)), high = (float)(value * (1 + 0x1p-50));
            if (low == high) {
                value = low;
                sure = 1;
            }
        }
    }
    if (!sure) {
        if (nearest_double(number, &value, lock) < 0) return -1;
        value = fabs(value);
    }
    *found = (float)(number->negative ? -value : value);
    return isfinite(*found) ? 0 : -1;
}

/* Whether 64 bits hold an integer, so that its digits are its text. */
static int is_plain_integer(const Number *number)
{
    Py_ssize_t length = number->end - number->start;
    if (!number->whole) return 0;
    if (number->negative) return !number->cut && number->digits != 0 && number->digits <= (uint64_t)1 << 63;
    return length < 20 || (length == 20 && memcmp(number->start, "18446744073709551615", 20) <= 0);
}

static int two(const char *at) { return is_digit(at[0]) && is_digit(at[1]) ? (at[0] - '0') * 10 + at[1] - '0' : -1; }

/* Milliseconds since 1970 of YYYY-MM-DDTHH:MM:SS with a fraction of 0, 3 or 6 digits, and nothing, Z or +00:00 after
 * it; -1 for all other text. `text` is followed by a quote. */
static int iso_ms(const char *text, Py_ssize_t length, int64_t *found)
{
    static const signed char days_of[] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (length > 6 && memcmp(text + length - 6, "+00:00", 6) == 0) length -= 6;
    else if (length > 1 && text[length - 1] == 'Z') length -= 1;
    if (length != 19 && length != 23 && length != 26) return -1;
    int century = two(text), of_century = two(text + 2), month = two(text + 5), day = two(text + 8);
    int hour = two(text + 11), minute = two(text + 14), second = two(text + 17), fraction = 0;
    if (text[4] != '-' || text[7] != '-' || text[13] != ':' || text[16] != ':') return -1;
    if (text[10] != 'T' && text[10] != ' ') return -1;
    if ((century | of_century | month | day | hour | minute | second) < 0) return -1;
    if (length > 19) {
        if (text[19] != '.') return -1;
        for (Py_ssize_t at = 20; at < length; at++) {
            if (!is_digit(text[at])) return -1;
            if (at < 23) fraction = fraction * 10 + text[at] - '0';
        }
    }
    int year = century * 100 + of_century;
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (year < 1 || month < 1 || month > 12 || hour > 23 || minute > 59 || second > 59) return -1;
    if (day < 1 || day > days_of[month] + (leap && month == 2)) return -1;
    /* H. Hinnant, "chrono-compatible low-level date algorithms": a year that begins in March */
    int shifted = year - (month <= 2), era = shifted / 400, of_era = shifted - era * 400;
    int day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t days = (int64_t)era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719468;
    *found = ((days * 24 + hour) * 60 + minute) * 60000 + second * 1000 + fraction;
    return 0;
}

/* Milliseconds of a whole number whose digits look like no date; -1 for all others. */
static int epoch_ms(const Number *number, int64_t *found)
{
    uint64_t value = number->digits;
    if (!number->whole || number->cut || number->negative) return -1;
    if (value < 19000101) *found = (int64_t)value * 1000;
    else if (value > 21001231 && value < 100000000000) *found = (int64_t)value * 1000; /* seconds; dates have 8 digits */
    else if (value >= 100000000000 && value < 190001010000) *found = (int64_t)value;
    else if (value > 210012312359 && value < 19000101000000) *found = (int64_t)value; /* 12 and 14 digits */
    else return -1;
    return 0;
}
