"""The starter's small deterministic tools, by family: signatures, what each returns, and questions to ask of it.

A family is one place (a library, a bank) with two or three tools of its own. A parameter names the pool its values
come from (`book: id`); a tool is one expression over its parameters. `build.py` writes the tools' source, fills the
questions and deals whole families to the splits.
"""

from dataclasses import dataclass

POOLS: dict[str, tuple[str | int, ...]] = {
    "id": (17, 42, 58, 103, 276, 31, 914, 65),
    "count": (3, 5, 2, 8, 4, 6, 7, 9),
    "amount": (25, 40, 150, 60, 300, 75, 120, 90),
    "minutes": (15, 30, 45, 10, 20, 50, 25, 35),
    "person": ("Anna", "Omar", "Lucy", "Ben", "Mia", "Tom", "Sara", "Jack"),
    "city": ("Paris", "Tokyo", "Cairo", "Lima", "Oslo", "Rome", "Delhi", "Berlin"),
    "day": ("Monday", "Friday", "Sunday", "Tuesday", "Thursday", "Saturday", "Wednesday"),
    "color": ("red", "blue", "green", "white", "yellow", "black", "purple"),
    "fruit": ("apples", "pears", "lemons", "plums", "grapes", "figs", "melons"),
    "animal": ("cat", "dog", "horse", "rabbit", "parrot", "goat", "turtle"),
    "room": ("kitchen", "bedroom", "garage", "office", "bathroom", "hall", "attic"),
    "dish": ("pizza", "soup", "pasta", "curry", "salad", "tacos", "rice"),
    "title": ("Dune", "Emma", "Ivanhoe", "Dracula", "Persuasion", "Ulysses", "Walden"),
    "song": ("Yesterday", "Imagine", "Thriller", "Hello", "Respect", "Hurt", "Creep"),
    "language": ("French", "Spanish", "German", "Arabic", "Hindi", "Greek", "Italian"),
    "word": ("river", "lamp", "cloud", "bread", "stone", "mirror", "garden"),
    "sport": ("tennis", "soccer", "hockey", "golf", "rugby", "cricket", "boxing"),
    "country": ("Japan", "Brazil", "Kenya", "Norway", "India", "Peru", "Egypt"),
    "plant": ("rose", "tulip", "fern", "cactus", "basil", "orchid", "ivy"),
    "item": ("lamp", "chair", "desk", "sofa", "mirror", "shelf", "rug"),
}


@dataclass(frozen=True)
class Tool:
    """`parameters` map a name to its pool; `expression` is the Python expression the tool returns."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    description: str
    expression: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class ToolFamily:
    name: str
    tools: tuple[Tool, ...]


def _tool(signature: str, description: str, expression: str, *questions: str) -> Tool:
    name, _, rest = signature.rstrip(")").partition("(")
    pairs = [part.split(":") for part in rest.split(",") if part]
    return Tool(name, tuple((a.strip(), b.strip()) for a, b in pairs), description, expression, questions)


def _family(name: str, *tools: Tool) -> ToolFamily:
    return ToolFamily(name, tools)


TOOL_FAMILIES: tuple[ToolFamily, ...] = (
    _family(
        "library",
        _tool(
            "renew_book(book: id)",
            "renew a borrowed book",
            'f"book {book} renewed"',
            "Please renew book {book}.",
            "I need more time with book {book}, renew it.",
        ),
        _tool(
            "find_book(title: title)",
            "look up a book by its title",
            'f"shelf {len(title)}: {title}"',
            "Where can I find the book {title}?",
            "Find the book {title}.",
        ),
    ),
    _family(
        "bank",
        _tool(
            "deposit(account: id, amount: amount)",
            "put money into an account",
            'f"{account} +{amount}"',
            "Deposit {amount} dollars into account {account}.",
            "Put {amount} dollars into account {account}.",
        ),
        _tool(
            "check_balance(account: id)",
            "show the balance of an account",
            'f"balance of {account}"',
            "What is the balance of account {account}?",
            "Check the balance of account {account}.",
        ),
    ),
    _family(
        "weather",
        _tool(
            "get_forecast(city: city)",
            "weather forecast for a city",
            'f"forecast for {city}: sunny"',
            "What is the weather forecast for {city}?",
            "Show me the forecast for {city}.",
        ),
        _tool(
            "get_humidity(city: city)",
            "current humidity in a city",
            'f"humidity in {city}: {len(city) * 10}"',
            "How high is the humidity in {city}?",
            "What is the humidity in {city} now?",
        ),
        _tool(
            "get_wind(city: city)",
            "current wind speed in a city",
            'f"wind in {city}: {len(city) * 3}"',
            "How fast is the wind in {city}?",
        ),
    ),
    _family(
        "alarm_clock",
        _tool(
            "set_timer(minutes: minutes)",
            "start a timer",
            'f"timer: {minutes} min"',
            "Set a timer for {minutes} minutes.",
            "Start a {minutes} minute timer.",
        ),
        _tool(
            "set_alarm(day: day, hour: count)",
            "set an alarm for a day and hour",
            'f"alarm {day} {hour}:00"',
            "Set an alarm for {day} at hour {hour}.",
            "Wake me up on {day} at hour {hour}.",
        ),
    ),
    _family(
        "lights",
        _tool(
            "turn_on_light(room: room)",
            "switch on the light in a room",
            'f"light on: {room}"',
            "Turn on the light in the {room}.",
            "Please switch on the {room} light.",
        ),
        _tool(
            "turn_off_light(room: room)",
            "switch off the light in a room",
            'f"light off: {room}"',
            "Turn off the light in the {room}.",
            "Please switch off the {room} light.",
        ),
        _tool(
            "set_light_color(room: room, color: color)",
            "change the light color in a room",
            'f"{room} is {color}"',
            "Make the light in the {room} {color}.",
        ),
    ),
    _family(
        "restaurant",
        _tool(
            "order_dish(dish: dish, quantity: count)",
            "order a dish",
            'f"{quantity} x {dish}"',
            "Order {quantity} portions of {dish}.",
            "I would like {quantity} servings of {dish}.",
        ),
        _tool(
            "cancel_dish(dish: dish)",
            "cancel an ordered dish",
            'f"no {dish}"',
            "Cancel the {dish}.",
            "We do not want the {dish} any more, cancel it.",
        ),
        _tool(
            "reserve_table(guests: count)",
            "reserve a table",
            'f"table for {guests}"',
            "Reserve a table for {guests} guests.",
        ),
    ),
    _family(
        "music",
        _tool(
            "play_song(song: song)",
            "play a song",
            'f"playing {song}"',
            "Play the song {song}.",
            "I want to hear {song}, play it.",
        ),
        _tool(
            "set_volume(level: count)",
            "set the volume level",
            'f"volume {level}"',
            "Set the volume to {level}.",
            "Change the volume level to {level}.",
        ),
    ),
    _family(
        "translator",
        _tool(
            "translate(word: word, language: language)",
            "translate a word into a language",
            'f"{word} in {language}"',
            "Translate {word} into {language}.",
            "What is {word} in {language}?",
        ),
        _tool(
            "define(word: word)",
            "give the definition of a word",
            'f"definition of {word}"',
            "What is the definition of {word}?",
            "Define the word {word}.",
        ),
    ),
    _family(
        "calendar",
        _tool(
            "add_meeting(person: person, day: day)",
            "plan a meeting with a person",
            'f"{day}: meet {person}"',
            "Add a meeting with {person} on {day}.",
            "Plan a meeting on {day} with {person}.",
        ),
        _tool(
            "list_meetings(day: day)",
            "list the meetings of a day",
            'f"meetings on {day}"',
            "Which meetings do I have on {day}?",
            "List my meetings for {day}.",
        ),
        _tool("clear_day(day: day)", "delete all meetings of a day", 'f"{day} is free"', "Clear my {day}."),
    ),
    _family(
        "messages",
        _tool(
            "call_person(person: person)",
            "call a person on the phone",
            'f"calling {person}"',
            "Call {person}.",
            "I want to talk to {person}, call now.",
        ),
        _tool(
            "block_person(person: person)",
            "block messages from a person",
            'f"blocked {person}"',
            "Block {person}.",
            "I want no more messages from {person}, block them.",
        ),
    ),
    _family(
        "groceries",
        _tool(
            "add_to_cart(fruit: fruit, quantity: count)",
            "add fruit to the cart",
            'f"+{quantity} {fruit}"',
            "Add {quantity} {fruit} to my cart.",
            "Put {quantity} {fruit} in the cart.",
        ),
        _tool(
            "remove_from_cart(fruit: fruit)",
            "take fruit out of the cart",
            'f"-{fruit}"',
            "Remove the {fruit} from my cart.",
            "Take the {fruit} out of the cart.",
        ),
        _tool(
            "get_price(fruit: fruit)",
            "price of a fruit",
            'f"{fruit} cost {len(fruit)}"',
            "What is the price of {fruit}?",
        ),
    ),
    _family(
        "pets",
        _tool(
            "feed_pet(animal: animal)",
            "feed a pet",
            'f"fed the {animal}"',
            "Feed the {animal}.",
            "The {animal} is hungry, feed it.",
        ),
        _tool(
            "walk_pet(animal: animal, minutes: minutes)",
            "take a pet for a walk",
            'f"{animal} out {minutes}"',
            "Walk the {animal} for {minutes} minutes.",
            "Take the {animal} for a walk of {minutes} minutes.",
        ),
    ),
    _family(
        "garden",
        _tool(
            "water_plant(plant: plant)",
            "water a plant",
            'f"watered {plant}"',
            "Water the {plant}.",
            "The {plant} is dry, water it.",
        ),
        _tool(
            "plant_seeds(plant: plant, count: count)",
            "plant some seeds",
            'f"{count} {plant} seeds"',
            "Plant {count} {plant} seeds.",
            "Put {count} {plant} seeds into the ground.",
        ),
    ),
    _family(
        "thermostat",
        _tool(
            "set_temperature(room: room, degrees: minutes)",
            "set the temperature of a room",
            'f"{room} at {degrees}"',
            "Set the {room} to {degrees} degrees.",
            "I want {degrees} degrees in the {room}.",
        ),
        _tool(
            "get_temperature(room: room)",
            "read the temperature of a room",
            'f"{room}: {len(room) + 15}"',
            "What is the temperature in the {room}?",
            "How warm is it in the {room}?",
        ),
    ),
    _family(
        "taxi",
        _tool(
            "book_taxi(city: city, passengers: count)",
            "book a taxi in a city",
            'f"taxi {city} {passengers}"',
            "Book a taxi in {city} for {passengers} passengers.",
            "I need a taxi for {passengers} people in {city}.",
        ),
        _tool(
            "cancel_taxi(booking: id)",
            "cancel a booked taxi",
            'f"cancelled {booking}"',
            "Cancel taxi booking {booking}.",
            "I do not need taxi {booking} any more, cancel it.",
        ),
    ),
    _family(
        "flights",
        _tool(
            "search_flights(city: city)",
            "find flights to a city",
            'f"flights to {city}"',
            "Search flights to {city}.",
            "Which flights go to {city}?",
        ),
        _tool(
            "flight_status(flight: id)",
            "status of a flight",
            'f"flight {flight} on time"',
            "What is the status of flight {flight}?",
            "Is flight {flight} on time?",
        ),
        _tool(
            "upgrade_seat(flight: id)",
            "upgrade the seat on a flight",
            'f"upgraded on {flight}"',
            "Upgrade my seat on flight {flight}.",
        ),
    ),
    _family(
        "hotel",
        _tool(
            "book_room(city: city, nights: count)",
            "book a hotel room",
            'f"{nights} nights in {city}"',
            "Book a room in {city} for {nights} nights.",
            "I want to stay {nights} nights in {city}, book a room.",
        ),
        _tool(
            "order_breakfast(room: id)",
            "order breakfast to a room",
            'f"breakfast for {room}"',
            "Order breakfast for room {room}.",
            "Room {room} would like breakfast.",
        ),
    ),
    _family(
        "parcels",
        _tool(
            "track_parcel(parcel: id)",
            "show where a parcel is",
            'f"parcel {parcel} on its way"',
            "Track parcel {parcel}.",
            "Where is my parcel {parcel}?",
        ),
        _tool(
            "return_parcel(parcel: id)",
            "send a parcel back",
            'f"parcel {parcel} returned"',
            "Return parcel {parcel}.",
            "I want to send parcel {parcel} back.",
        ),
        _tool(
            "send_parcel(city: city)", "send a new parcel to a city", 'f"parcel to {city}"', "Send a parcel to {city}."
        ),
    ),
    _family(
        "school",
        _tool(
            "record_grade(student: person, grade: count)",
            "write down a grade",
            'f"{student}: {grade}"',
            "Record grade {grade} for {student}.",
            "{student} got grade {grade}, record it.",
        ),
        _tool(
            "mark_absent(student: person)",
            "mark a student as absent",
            'f"{student} is absent"',
            "Mark {student} as absent.",
            "{student} is not here, mark it.",
        ),
    ),
    _family(
        "gym",
        _tool(
            "log_run(minutes: minutes)",
            "log a run",
            'f"run {minutes}"',
            "Log a run of {minutes} minutes.",
            "I ran for {minutes} minutes, log it.",
        ),
        _tool(
            "log_swim(laps: count)",
            "log a swim",
            'f"swim {laps}"',
            "Log a swim of {laps} laps.",
            "I swam {laps} laps, log it.",
        ),
        _tool("join_class(sport: sport)", "join a sports class", 'f"joined {sport}"', "Join the {sport} class."),
    ),
    _family(
        "hospital",
        _tool(
            "book_doctor(patient: person, day: day)",
            "book a doctor for a patient",
            'f"{patient} on {day}"',
            "Book a doctor for {patient} on {day}.",
            "{patient} needs a doctor on {day}.",
        ),
        _tool(
            "call_nurse(room: id)",
            "call a nurse to a room",
            'f"nurse to {room}"',
            "Call a nurse to room {room}.",
            "Room {room} needs a nurse.",
        ),
    ),
    _family(
        "cinema",
        _tool(
            "buy_ticket(movie: title, seats: count)",
            "buy movie tickets",
            'f"{seats} for {movie}"',
            "Buy {seats} tickets for {movie}.",
            "I want {seats} seats for the movie {movie}.",
        ),
        _tool(
            "movie_length(movie: title)",
            "length of a movie",
            'f"{movie}: {len(movie) * 20}"',
            "How long is the movie {movie}?",
            "What is the length of {movie}?",
        ),
    ),
    _family(
        "car",
        _tool(
            "lock_car(plate: id)",
            "lock a car",
            'f"locked {plate}"',
            "Lock car {plate}.",
            "Please lock the car {plate}.",
        ),
        _tool(
            "unlock_car(plate: id)",
            "unlock a car",
            'f"unlocked {plate}"',
            "Unlock car {plate}.",
            "Please unlock the car {plate}.",
        ),
        _tool(
            "refuel_car(plate: id, liters: count)",
            "put fuel into a car",
            'f"{plate} +{liters}"',
            "Refuel car {plate} with {liters} liters.",
        ),
    ),
    _family(
        "email",
        _tool(
            "send_email(person: person, subject: word)",
            "send an email",
            'f"to {person}: {subject}"',
            "Send an email to {person} with the subject {subject}.",
            "Email {person} about the subject {subject}.",
        ),
        _tool(
            "delete_email(email: id)",
            "delete an email",
            'f"deleted {email}"',
            "Delete email {email}.",
            "I do not need email {email}, delete it.",
        ),
    ),
    _family(
        "notes",
        _tool(
            "create_note(subject: word)",
            "create a note",
            'f"note on {subject}"',
            "Create a note about the {subject}.",
            "Make a new note: {subject}.",
        ),
        _tool(
            "pin_note(note: id)",
            "pin a note to the top",
            'f"pinned {note}"',
            "Pin note {note}.",
            "Keep note {note} at the top.",
        ),
    ),
    _family(
        "printer",
        _tool(
            "print_file(file: id, copies: count)",
            "print a file",
            'f"{copies} of {file}"',
            "Print {copies} copies of file {file}.",
            "I need file {file} printed {copies} times.",
        ),
        _tool(
            "stop_printing(file: id)",
            "stop printing a file",
            'f"stopped {file}"',
            "Stop printing file {file}.",
            "Do not print file {file}, stop it.",
        ),
    ),
    _family(
        "museum",
        _tool(
            "guide_tour(language: language, visitors: count)",
            "start a guided tour",
            'f"{language} x{visitors}"',
            "Start a tour in {language} for {visitors} visitors.",
            "{visitors} visitors want a tour in {language}.",
        ),
        _tool(
            "describe_painting(painting: id)",
            "describe a painting",
            'f"painting {painting}"',
            "Describe painting {painting}.",
            "Tell me about painting {painting}.",
        ),
    ),
    _family(
        "sports_club",
        _tool(
            "join_team(player: person, sport: sport)",
            "add a player to a team",
            'f"{player} plays {sport}"',
            "Let {player} join the {sport} team.",
            "{player} wants to join {sport}.",
        ),
        _tool(
            "next_match(sport: sport)",
            "date of the next match",
            'f"next {sport} match"',
            "When is the next {sport} match?",
            "Show me the next match in {sport}.",
        ),
    ),
    _family(
        "geography",
        _tool(
            "capital_of(country: country)",
            "capital city of a country",
            'f"capital of {country}"',
            "What is the capital of {country}?",
            "Name the capital city of {country}.",
        ),
        _tool(
            "population_of(country: country)",
            "population of a country",
            'f"people in {country}"',
            "What is the population of {country}?",
            "How many people live in {country}?",
        ),
        _tool(
            "flag_of(country: country)",
            "flag of a country",
            'f"flag of {country}"',
            "What does the flag of {country} look like?",
        ),
    ),
    _family(
        "paint_shop",
        _tool(
            "mix_paint(first: color, second: color)",
            "mix two colors",
            'f"{first} and {second}"',
            "Mix {first} with {second}.",
            "What do I get from {first} and {second} paint? Mix them.",
        ),
        _tool(
            "order_paint(color: color, cans: count)",
            "order cans of paint",
            'f"{cans} cans {color}"',
            "Order {cans} cans of {color} paint.",
            "I need {cans} cans in {color}.",
        ),
    ),
    _family(
        "furniture",
        _tool(
            "order_item(item: item, quantity: count)",
            "order furniture",
            'f"order {quantity} {item}"',
            "Order {quantity} of the {item}.",
            "I want to buy the {item}, order {quantity}.",
        ),
        _tool(
            "assemble_item(item: item)",
            "ask for help with assembly",
            'f"assembly of {item}"',
            "Please assemble the {item}.",
            "I need help to assemble a {item}.",
        ),
    ),
    _family(
        "recipes",
        _tool(
            "find_recipe(dish: dish)",
            "find a recipe",
            'f"recipe: {dish}"',
            "Find a recipe for {dish}.",
            "How do I cook {dish}? Find a recipe.",
        ),
        _tool(
            "save_recipe(recipe: id)",
            "save a recipe",
            'f"saved {recipe}"',
            "Save recipe {recipe}.",
            "I like recipe {recipe}, save it.",
        ),
        _tool(
            "count_calories(dish: dish)",
            "calories of a dish",
            'f"{dish}: {len(dish) * 100}"',
            "How many calories does {dish} have?",
        ),
    ),
    _family(
        "banking_card",
        _tool(
            "freeze_card(card: id)",
            "freeze a card",
            'f"card {card} frozen"',
            "Freeze card {card}.",
            "I lost card {card}, freeze it.",
        ),
        _tool(
            "set_limit(card: id, limit: amount)",
            "set the limit of a card",
            'f"{card} up to {limit}"',
            "Set the limit of card {card} to {limit}.",
            "Card {card} should have a limit of {limit}.",
        ),
    ),
    _family(
        "rental",
        _tool(
            "rent_bike(days: count)",
            "rent a bike",
            'f"bike for {days}"',
            "Rent a bike for {days} days.",
            "I need a bike for {days} days.",
        ),
        _tool(
            "rent_boat(hours: count)",
            "rent a boat",
            'f"boat for {hours}"',
            "Rent a boat for {hours} hours.",
            "I need a boat for {hours} hours.",
        ),
    ),
    _family(
        "trains",
        _tool(
            "buy_train_ticket(start: city, end: city)",
            "buy a train ticket",
            'f"{start} to {end}"',
            "Buy a train ticket from {start} to {end}.",
            "I want to go by train from {start} to {end}.",
        ),
        _tool(
            "platform_of(train: id)",
            "platform of a train",
            'f"platform of {train}"',
            "Which platform does train {train} use?",
            "Show the platform of train {train}.",
        ),
    ),
    _family(
        "farm",
        _tool(
            "harvest(fruit: fruit, baskets: count)",
            "harvest fruit",
            'f"{baskets} baskets {fruit}"',
            "Harvest {baskets} baskets of {fruit}.",
            "Bring in {baskets} baskets of {fruit}.",
        ),
        _tool(
            "sell_animal(animal: animal)",
            "sell an animal",
            'f"sold {animal}"',
            "Sell the {animal}.",
            "We want to sell a {animal}.",
        ),
    ),
    _family(
        "cleaning_robot",
        _tool(
            "clean_room(room: room)",
            "clean a room",
            'f"cleaned {room}"',
            "Clean the {room}.",
            "The {room} is dirty, clean it.",
        ),
        _tool(
            "skip_room(room: room)",
            "leave out a room",
            'f"skipped {room}"',
            "Skip the {room}.",
            "Do not clean the {room}, skip it.",
        ),
        _tool(
            "charge_robot(minutes: minutes)",
            "charge the robot",
            'f"charge {minutes}"',
            "Charge the robot for {minutes} minutes.",
        ),
    ),
    _family(
        "quiz",
        _tool(
            "start_quiz(topic: sport, questions: count)",
            "start a quiz",
            'f"{questions} on {topic}"',
            "Start a quiz about {topic} with {questions} questions.",
            "Give me {questions} quiz questions about {topic}.",
        ),
        _tool(
            "show_score(player: person)",
            "show a player's score",
            'f"score of {player}"',
            "What is the score of {player}?",
            "Show the score of {player}.",
        ),
    ),
    _family(
        "photos",
        _tool(
            "crop_photo(photo: id)",
            "crop a photo",
            'f"cropped {photo}"',
            "Crop photo {photo}.",
            "Photo {photo} is too big, crop it.",
        ),
        _tool(
            "rotate_photo(photo: id, degrees: amount)",
            "rotate a photo",
            'f"{photo} by {degrees}"',
            "Rotate photo {photo} by {degrees} degrees.",
            "Turn photo {photo} by {degrees} degrees.",
        ),
    ),
    _family(
        "elevator",
        _tool(
            "go_to_floor(floor: count)",
            "move to a floor",
            'f"floor {floor}"',
            "Go to floor {floor}.",
            "Take me to floor {floor}.",
        ),
        _tool(
            "hold_door(seconds: minutes)",
            "hold the door open",
            'f"door open {seconds}"',
            "Hold the door for {seconds} seconds.",
            "Keep the door open for {seconds} seconds.",
        ),
    ),
    _family(
        "television",
        _tool(
            "switch_channel(channel: id)",
            "switch to a channel",
            'f"channel {channel}"',
            "Switch to channel {channel}.",
            "I want to watch channel {channel}.",
        ),
        _tool(
            "record_show(show: title, day: day)",
            "record a show",
            'f"record {show} {day}"',
            "Record the show {show} on {day}.",
            "On {day}, record {show}.",
        ),
    ),
    _family(
        "jobs_board",
        _tool(
            "apply_for_job(person: person, job: id)",
            "apply for a job",
            'f"{person} for {job}"',
            "{person} wants to apply for job {job}.",
            "Apply for job {job} as {person}.",
        ),
        _tool(
            "close_job(job: id)",
            "close a job offer",
            'f"closed {job}"',
            "Close job {job}.",
            "Job {job} is taken, close it.",
        ),
    ),
    _family(
        "power_plant",
        _tool(
            "start_pump(pump: id)",
            "start a pump",
            'f"pump {pump} on"',
            "Start pump {pump}.",
            "Pump {pump} should run, start it.",
        ),
        _tool(
            "stop_pump(pump: id)",
            "stop a pump",
            'f"pump {pump} off"',
            "Stop pump {pump}.",
            "Pump {pump} is too hot, stop it.",
        ),
        _tool(
            "set_power(percent: minutes)", "set the power", 'f"power {percent}"', "Set the power to {percent} percent."
        ),
    ),
    _family(
        "zoo",
        _tool(
            "visit_animal(animal: animal)",
            "way to an animal",
            'f"way to the {animal}"',
            "I want to visit the {animal}.",
            "How do I get to the {animal}?",
        ),
        _tool(
            "feeding_time(animal: animal)",
            "feeding time of an animal",
            'f"{animal} at {len(animal)}"',
            "What is the feeding time of the {animal}?",
            "When is the {animal} fed?",
        ),
    ),
    _family(
        "theater",
        _tool(
            "reserve_seats(play: title, seats: count)",
            "reserve seats for a play",
            'f"{seats} x {play}"',
            "Reserve {seats} seats for the play {play}.",
            "Keep {seats} seats for {play}.",
        ),
        _tool(
            "list_actors(play: title)",
            "list the actors of a play",
            'f"actors in {play}"',
            "Who are the actors in {play}?",
            "List the actors of {play}.",
        ),
    ),
    _family(
        "post_office",
        _tool(
            "buy_stamps(stamps: count)",
            "buy stamps",
            'f"{stamps} stamps"',
            "Buy {stamps} stamps.",
            "I need {stamps} stamps.",
        ),
        _tool(
            "letter_price(country: country)",
            "price of a letter to a country",
            'f"letter to {country}"',
            "What does a letter to {country} cost?",
            "Price of a letter to {country}?",
        ),
    ),
    _family(
        "bakery",
        _tool(
            "bake_bread(loaves: count)",
            "bake bread",
            'f"{loaves} loaves"',
            "Bake {loaves} loaves of bread.",
            "We need {loaves} loaves of bread.",
        ),
        _tool(
            "order_cake(person: person, day: day)",
            "order a cake for a person",
            'f"cake {person} {day}"',
            "Order a cake for {person} on {day}.",
            "{person} needs a cake on {day}.",
        ),
    ),
    _family(
        "warehouse",
        _tool(
            "count_stock(item: item)",
            "count the stock of an item",
            'f"stock of {item}"',
            "How many of the {item} are in stock?",
            "Count the stock of the {item}.",
        ),
        _tool(
            "move_item(item: item, shelf: id)",
            "move an item to a shelf",
            'f"{item} on {shelf}"',
            "Move the {item} to shelf {shelf}.",
            "The {item} belongs on shelf {shelf}.",
        ),
        _tool("scan_shelf(shelf: id)", "scan a shelf", 'f"scanned {shelf}"', "Scan shelf {shelf}."),
    ),
    _family(
        "insurance",
        _tool(
            "file_claim(person: person, amount: amount)",
            "file a claim",
            'f"claim {person} {amount}"',
            "File a claim of {amount} dollars for {person}.",
            "{person} has a damage of {amount} dollars, file it.",
        ),
        _tool(
            "cancel_policy(policy: id)",
            "cancel a policy",
            'f"policy {policy} over"',
            "Cancel policy {policy}.",
            "I do not need policy {policy}, cancel it.",
        ),
    ),
    _family(
        "auction",
        _tool(
            "place_bid(lot: id, amount: amount)",
            "bid on a lot",
            'f"{amount} on {lot}"',
            "Place a bid of {amount} on lot {lot}.",
            "Bid {amount} dollars for lot {lot}.",
        ),
        _tool(
            "watch_lot(lot: id)",
            "watch a lot",
            'f"watching {lot}"',
            "Watch lot {lot}.",
            "Tell me about new bids on lot {lot}, watch it.",
        ),
    ),
    _family(
        "festival",
        _tool(
            "buy_pass(visitor: person, days: count)",
            "buy a festival pass",
            'f"{visitor} for {days}"',
            "Buy a pass for {visitor} for {days} days.",
            "{visitor} needs a pass for {days} days.",
        ),
        _tool(
            "stage_of(song: song)",
            "stage where a song is played",
            'f"stage {len(song)}: {song}"',
            "On which stage is {song} played?",
            "Show me the stage of {song}.",
        ),
    ),
    _family(
        "laundry",
        _tool(
            "wash(color: color, degrees: minutes)",
            "wash clothes of a color",
            'f"{color} at {degrees}"',
            "Wash the {color} clothes at {degrees} degrees.",
            "The {color} clothes need {degrees} degrees.",
        ),
        _tool(
            "dry(minutes: minutes)",
            "dry the clothes",
            'f"dry {minutes}"',
            "Dry the clothes for {minutes} minutes.",
            "They are wet, dry them for {minutes} minutes.",
        ),
    ),
    _family(
        "chess",
        _tool(
            "challenge(player: person, minutes: minutes)",
            "challenge a player",
            'f"{player} {minutes}"',
            "Challenge {player} to a game of {minutes} minutes.",
            "I want to play {minutes} minutes against {player}.",
        ),
        _tool(
            "rating_of(player: person)",
            "rating of a player",
            'f"rating of {player}"',
            "What is the rating of {player}?",
            "Show me the rating of {player}.",
        ),
    ),
    _family(
        "camera",
        _tool(
            "take_picture(room: room)",
            "take a picture of a room",
            'f"picture of {room}"',
            "Take a picture of the {room}.",
            "I want to see the {room}, take a picture.",
        ),
        _tool(
            "delete_picture(picture: id)",
            "delete a picture",
            'f"picture {picture} gone"',
            "Delete picture {picture}.",
            "Picture {picture} is bad, delete it.",
        ),
    ),
    _family(
        "wedding",
        _tool(
            "invite_guest(guest: person, table: count)",
            "invite a guest",
            'f"{guest} at {table}"',
            "Invite {guest} and put them at table {table}.",
            "{guest} should sit at table {table}, invite them.",
        ),
        _tool(
            "choose_flowers(flower: plant)",
            "choose the flowers",
            'f"flowers: {flower}"',
            "Choose the {flower} as flowers.",
            "We want flowers: {flower}.",
        ),
    ),
    _family(
        "radio",
        _tool(
            "tune(station: id)",
            "tune to a station",
            'f"station {station}"',
            "Tune to station {station}.",
            "I want to hear station {station}.",
        ),
        _tool(
            "request_song(song: song, listener: person)",
            "request a song",
            'f"{song} for {listener}"',
            "Request the song {song} for {listener}.",
            "{listener} would like to hear {song}, request it.",
        ),
    ),
    _family(
        "fishing_trip",
        _tool(
            "rent_rods(rods: count)",
            "rent fishing rods",
            'f"{rods} rods"',
            "Rent {rods} fishing rods.",
            "We are short of {rods} rods, rent them.",
        ),
        _tool(
            "tide_on(day: day)",
            "tide on a day",
            'f"tide on {day}"',
            "What is the tide on {day}?",
            "Show me the tide for {day}.",
        ),
    ),
    _family(
        "courier",
        _tool(
            "pick_up(item: item, city: city)",
            "pick up an item in a city",
            'f"{item} from {city}"',
            "Pick up the {item} in {city}.",
            "There is a {item} in {city}, pick it up.",
        ),
        _tool(
            "courier_phone(courier: person)",
            "phone number of a courier",
            'f"phone of {courier}"',
            "What is the phone number of {courier}?",
            "How can I phone {courier}?",
        ),
    ),
)
