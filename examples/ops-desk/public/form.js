// A form made from a JSON Schema of an object: one field a property. What it has no field for is edited as JSON.

import { h } from './dom.js'

let count = 0

/**
 * `read()` gives the input, or undefined after it showed what is wrong. Optional fields left empty are left out.
 * @param {object | undefined} schema  without one, the fields are those that `input` has
 * @param {object} input
 */
export function inputForm(schema, input) {
  const properties = { ...guess(input), ...schema?.properties }
  const required = new Set(schema?.required ?? [])
  const fields = Object.entries(properties).map(([name, property]) =>
    field(name, property, input[name], required.has(name)),
  )
  return {
    elements: fields.map(({ row }) => row),
    read() {
      const wrong = fields.filter(({ check }) => !check())
      wrong[0]?.control.reportValidity()
      if (wrong.length > 0) return undefined
      const given = fields.map(({ name, value }) => [name, value()])
      return Object.fromEntries(given.filter(([, value]) => value !== undefined))
    },
  }
}

function guess(input) {
  return Object.fromEntries(
    Object.entries(input).map(([name, value]) => [
      name,
      { type: Array.isArray(value) ? 'array' : typeof value },
    ]),
  )
}

function field(name, property, value, isRequired) {
  const id = `field-${++count}`
  const options = choices(property)
  const { description } = property
  const shared = { id, name, 'aria-describedby': description ? `${id}-note` : null }
  const { control, read } = options
    ? select(shared, options, value, isRequired)
    : property.type === 'boolean'
      ? checkbox(shared, value ?? property.default)
      : property.type === 'number' || property.type === 'integer'
        ? number(shared, property, value, isRequired)
        : property.type === 'string'
          ? text(shared, property, value, isRequired)
          : json(shared, value, isRequired)
  const note =
    property.default === undefined
      ? description
      : `${description ?? ''} Default: ${JSON.stringify(property.default)}.`
  const row = h(
    'div',
    { class: 'row' },
    h(
      'label',
      { for: id },
      name,
      isRequired ? null : [' ', h('span', { class: 'note' }, 'optional')],
    ),
    control,
    note ? h('p', { id: `${id}-note`, class: 'note' }, note.trim()) : null,
  )
  return { name, row, control, value: read, check: () => control.checkValidity() }
}

/** The values of an enum, also written as `anyOf` of constants. */
function choices({ enum: values, anyOf }) {
  if (values) return values
  return anyOf?.every((one) => 'const' in one) ? anyOf.map((one) => one.const) : undefined
}

function select(shared, options, value, isRequired) {
  const all = isRequired ? options : [undefined, ...options]
  const control = h(
    'select',
    shared,
    all.map((option) => h('option', {}, option === undefined ? '' : String(option))),
  )
  // A value that is none of the options stays visible, and has to be changed.
  control.selectedIndex = all.indexOf(value)
  control.required = isRequired
  return { control, read: () => all[control.selectedIndex] }
}

function checkbox(shared, value) {
  const control = h('input', { ...shared, type: 'checkbox', checked: value === true })
  return { control, read: () => control.checked }
}

function number(shared, { type, minimum, maximum }, value, isRequired) {
  const control = h('input', {
    ...shared,
    type: 'number',
    step: type === 'integer' ? '1' : 'any',
    min: minimum,
    max: maximum,
    required: isRequired,
  })
  control.value = value ?? ''
  return { control, read: () => (control.value === '' ? undefined : Number(control.value)) }
}

function text(shared, { minLength, maxLength, pattern }, value, isRequired) {
  const isLong = (maxLength ?? 0) > 120 || /\n/.test(value ?? '') || (value ?? '').length > 80
  const limits = {
    minlength: minLength,
    maxlength: maxLength,
    required: isRequired && (minLength ?? 0) > 0,
  }
  const control = isLong
    ? h('textarea', { ...shared, ...limits, rows: '3' })
    : h('input', {
        ...shared,
        ...limits,
        type: 'text',
        pattern,
        autocomplete: 'off',
        spellcheck: 'false',
      })
  control.value = value ?? ''
  return { control, read: () => (control.value === '' && !isRequired ? undefined : control.value) }
}

function json(shared, value, isRequired) {
  const control = h('textarea', {
    ...shared,
    rows: '4',
    spellcheck: 'false',
    class: 'code',
    required: isRequired,
  })
  control.value = value === undefined ? '' : JSON.stringify(value, null, 2)
  const check = () => {
    control.setCustomValidity('')
    try {
      if (control.value.trim() !== '') JSON.parse(control.value)
    } catch (error) {
      control.setCustomValidity(`This is no JSON: ${error.message}`)
    }
  }
  control.addEventListener('input', check)
  return {
    control,
    read: () => (control.value.trim() === '' ? undefined : JSON.parse(control.value)),
  }
}
