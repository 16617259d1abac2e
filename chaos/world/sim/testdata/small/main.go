// Small is a program that shows what the host gives it: everything in it that
// could differ from one run to the next, and the ways in which a program ends.
package main

import (
	crypto "crypto/rand"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

func main() {
	seed := flag.Uint64("seed", 0, "the run's seed")
	mode := flag.String("mode", "show", "what to do")
	flag.Parse()
	switch *mode {
	case "show":
		show(*seed)
	case "spin":
		for i := 0; i >= 0; {
			i &= 1
		}
	case "idle":
		for {
			time.Sleep(0)
			time.Now()
		}
	case "wait":
		for {
			time.Sleep(time.Minute)
		}
	case "eat":
		var eaten [][]byte
		for {
			eaten = append(eaten, make([]byte, 1<<20))
			eaten[len(eaten)-1][0] = 1
		}
	case "talk":
		for {
			fmt.Println("and another thing")
		}
	case "fail":
		os.Exit(3)
	case "panic":
		panic("out of cheese")
	}
}

func show(seed uint64) {
	fmt.Println("seed", seed, "env", len(os.Environ()))
	var secret [8]byte
	_, _ = crypto.Read(secret[:])
	fmt.Printf("crypto %x math %d\n", secret, rand.Uint64())
	order := map[int]bool{}
	for i := range 20 {
		order[i] = true
	}
	for i := range order {
		fmt.Print(i, " ")
	}
	fmt.Println()
	race()
	fmt.Println(time.Now().UTC().Format(time.RFC3339Nano))
	time.Sleep(90 * time.Minute)
	fmt.Println(time.Now().UTC().Format(time.RFC3339Nano))
}

// race lets goroutines compete through a mutex, timers and select.
func race() {
	results := make(chan int)
	done := make(chan struct{})
	var mu sync.Mutex
	sum := 0
	for i := range 8 {
		go func() {
			for range 50 {
				time.Sleep(time.Duration(rand.IntN(1000)))
				mu.Lock()
				sum = sum*31 + i
				mu.Unlock()
				select {
				case results <- i:
				case <-done:
					return
				}
			}
		}()
	}
	for range 200 {
		fmt.Print(<-results)
	}
	close(done)
	mu.Lock()
	fmt.Println(" sum", sum)
	mu.Unlock()
}
