package main

// The formatting that fmt, strconv and time would do, without linking them:
// what is linked decides how much memory a shim takes.

// appendInt appends n in decimal.
func appendInt(b []byte, n int64) []byte {
	if n < 0 {
		b = append(b, '-')
		return appendUint(b, uint64(-n))
	}
	return appendUint(b, uint64(n))
}

func appendUint(b []byte, n uint64) []byte {
	var digits [20]byte
	i := len(digits)
	for {
		i--
		digits[i] = byte('0' + n%10)
		n /= 10
		if n == 0 {
			return append(b, digits[i:]...)
		}
	}
}

// appendPadded appends n with leading zeros up to width.
func appendPadded(b []byte, n int64, width int) []byte {
	limit := int64(1)
	for range width - 1 {
		limit *= 10
	}
	for ; limit > n && limit > 1; limit /= 10 {
		b = append(b, '0')
	}
	return appendInt(b, n)
}

// maxNumberDigits keeps parseInt inside int64.
const maxNumberDigits = 18

// parseInt reads a decimal number of at most maxNumberDigits digits.
func parseInt(s string) (int64, bool) {
	digits, negative := s, false
	if len(s) > 0 && s[0] == '-' {
		digits, negative = s[1:], true
	}
	if digits == "" || len(digits) > maxNumberDigits {
		return 0, false
	}
	n := int64(0)
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(digits[i]-'0')
	}
	if negative {
		n = -n
	}
	return n, true
}

// appendTime appends a time in UTC as RFC 3339 with nine digits of a second.
// The calendar is Howard Hinnant's civil_from_days (days since 0000-03-01).
func appendTime(b []byte, sec, nsec int64) []byte {
	days, rest := sec/86400, sec%86400
	z := days + 719468
	era := z / 146097
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day, month, year := doy-(153*mp+2)/5+1, mp+3, yoe+era*400
	if month > 12 {
		month, year = month-12, year+1
	}
	b = append(appendPadded(b, year, 4), '-')
	b = append(appendPadded(b, month, 2), '-')
	b = append(appendPadded(b, day, 2), 'T')
	b = append(appendPadded(b, rest/3600, 2), ':')
	b = append(appendPadded(b, rest/60%60, 2), ':')
	b = append(appendPadded(b, rest%60, 2), '.')
	return append(appendPadded(b, nsec, 9), 'Z')
}
