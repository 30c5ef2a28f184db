/* JSON: the ends of strings and numbers, and values that nobody reads. Included by codec.c. */

#define MAX_DEPTH 64 /* of objects and arrays inside each other, in what nobody reads */

enum { ESCAPED = 1, NOT_ASCII = 2 }; /* what a string has */

static inline const char *skip_space(const char *at)
{
    while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t') at++;
    return at;
}

static inline int is_digit(char sign) { return sign >= '0' && sign <= '9'; }

/* Whether this is UTF-8 as Python decodes it: The Unicode Standard, table 3-7. */
static int is_utf8(const char *text, const char *end)
{
    const unsigned char *at = (const unsigned char *)text, *stop = (const unsigned char *)end;
    while (at < stop) {
        unsigned char lead = *at++, least = 0x80, most = 0xBF; /* of the second byte */
        int more;
        if (lead < 0x80) continue;
        if (lead < 0xC2 || lead > 0xF4) return 0;
        more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        if (lead == 0xE0) least = 0xA0;      /* less is longer than need be */
        else if (lead == 0xED) most = 0x9F;  /* more is half a surrogate pair */
        else if (lead == 0xF0) least = 0x90;
        else if (lead == 0xF4) most = 0x8F;  /* more is beyond U+10FFFF */
        if (stop - at < more || *at < least || *at > most) return 0;
        for (int i = 1; i < more; i++)
            if ((at[i] & 0xC0) != 0x80) return 0;
        at += more;
    }
    return 1;
}

static int hex4(const char *at)
{
    int unit = 0;
    for (int i = 0; i < 4; i++) {
        char sign = at[i], lower = (char)(sign | 0x20);
        if (is_digit(sign)) unit = unit * 16 + sign - '0';
        else if (lower >= 'a' && lower <= 'f') unit = unit * 16 + lower - 'a' + 10;
        else return -1;
    }
    return unit;
}

/* After an escape that begins at `at`; NULL for one that JSON has not, and for half a surrogate pair. */
static const char *skip_escape(const char *at)
{
    if (at[1] != 'u') return at[1] && strchr("\"\\/bfnrt", at[1]) ? at + 2 : NULL;
    int unit = hex4(at + 2);
    if (unit < 0 || (unit >= 0xDC00 && unit < 0xE000)) return NULL;
    if (unit < 0xD800 || unit >= 0xE000) return at + 6;
    if (at[6] != '\\' || at[7] != 'u') return NULL;
    unit = hex4(at + 8);
    return unit >= 0xDC00 && unit < 0xE000 ? at + 12 : NULL;
}

/* The closing quote of a string whose first character is at `at`; NULL where it is not sound. UTF-8 is not checked. */
static const char *string_end(const char *at, const char *end, int *kinds)
{
    const uint64_t ones = 0x0101010101010101u, highs = ones * 0x80;
    for (;;) {
        while (end - at >= 8) { /* is any of the next eight special? */
            uint64_t word, quote, backslash, special;
            memcpy(&word, at, 8);
            quote = word ^ ones * '"';
            backslash = word ^ ones * '\\';
            special = (((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) | ((word - ones * 0x20) & ~word)
                       | word) & highs;
            if (special) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
                at += __builtin_ctzll(special) >> 3;
#endif
                break;
            }
            at += 8;
        }
        unsigned char sign = (unsigned char)*at;
        if (sign == '"') return at;
        if (sign < 0x20) return NULL;
        if (sign == '\\') {
            *kinds |= ESCAPED;
            if ((at = skip_escape(at)) == NULL) return NULL;
        } else {
            if (sign >= 0x80) *kinds |= NOT_ASCII;
            at++;
        }
    }
}

typedef struct {
    const char *start, *end;
    uint64_t digits;  /* the first 19 that are significant */
    int32_t exponent; /* of ten, for these digits */
    char negative, whole, cut; /* whole: without fraction and exponent; cut: there are more digits */
} Number;

static int read_number(const char *at, Number *number)
{
    uint64_t digits = 0;
    int kept = 0, exponent = 0;
    *number = (Number){.start = at, .whole = 1, .negative = *at == '-'};
    at += number->negative;
    if (!is_digit(*at)) return -1;
    if (*at == '0') {
        at++;
    } else {
        for (; is_digit(*at); at++) {
            if (kept < 19) {
                digits = digits * 10 + (uint64_t)(*at - '0');
                kept++;
            } else {
                number->cut = 1;
                exponent++;
            }
        }
    }
    if (*at == '.') {
        number->whole = 0;
        if (!is_digit(*++at)) return -1;
        for (; is_digit(*at); at++) {
            if (kept < 19) {
                digits = digits * 10 + (uint64_t)(*at - '0');
                kept += digits != 0;
                exponent--;
            } else {
                number->cut = 1;
            }
        }
    }
    if (*at == 'e' || *at == 'E') {
        int power = 0, minus = at[1] == '-';
        number->whole = 0;
        at += 1 + (at[1] == '-' || at[1] == '+');
        if (!is_digit(*at)) return -1;
        for (; is_digit(*at); at++) power = power < 100000 ? power * 10 + *at - '0' : power;
        exponent += minus ? -power : power;
    }
    number->digits = digits;
    number->exponent = exponent;
    number->end = at;
    return 0;
}

/* After the value at `at`; NULL where it is not sound, or not plain. */
static const char *skip_value(const char *at, const char *end, int depth, int *kinds)
{
    Number number;
    if (*at == '"') return (at = string_end(at + 1, end, kinds)) == NULL ? NULL : at + 1;
    if (*at == 't') return strncmp(at, "true", 4) == 0 ? at + 4 : NULL;
    if (*at == 'f') return strncmp(at, "false", 5) == 0 ? at + 5 : NULL;
    if (*at == 'n') return strncmp(at, "null", 4) == 0 ? at + 4 : NULL;
    if (*at != '{' && *at != '[') {
        if (read_number(at, &number) < 0) return NULL;
        return number.end - at < 100 && number.exponent < 200 ? number.end : NULL; /* far from infinite */
    }
    char opening = *at, closing = opening == '{' ? '}' : ']';
    if (depth >= MAX_DEPTH) return NULL;
    at = skip_space(at + 1);
    if (*at == closing) return at + 1;
    for (;;) {
        if (opening == '{') {
            if (*at != '"' || (at = string_end(at + 1, end, kinds)) == NULL) return NULL;
            at = skip_space(at + 1);
            if (*at != ':') return NULL;
            at = skip_space(at + 1);
        }
        if ((at = skip_value(at, end, depth + 1, kinds)) == NULL) return NULL;
        at = skip_space(at);
        if (*at == closing) return at + 1;
        if (*at != ',') return NULL;
        at = skip_space(at + 1);
    }
}
